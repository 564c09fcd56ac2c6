//go:build tools

// Package tools pins the Helm client that the lab compiles; nothing imports it.
package tools

import _ "helm.sh/helm/v4/cmd/helm"
