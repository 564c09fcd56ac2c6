// Argo CD's application-controller and repo-server, as its own program offers them, without the rest of it: no pages, no
// SSO, no command line.
package main

import (
	"os"
	"path/filepath"

	controller "github.com/argoproj/argo-cd/v3/cmd/argocd-application-controller/commands"
	repository "github.com/argoproj/argo-cd/v3/cmd/argocd-repo-server/commands"
)

func main() {
	command := controller.NewCommand()
	if filepath.Base(os.Args[0]) == "argocd-repo-server" {
		command = repository.NewCommand()
	}
	if command.Execute() != nil {
		os.Exit(1)
	}
}
