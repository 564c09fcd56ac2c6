-- What can be done from Argo CD's pages. Nothing of it touches the spec, so nothing of it makes the application OutOfSync.

local paused = (obj.metadata.annotations or {})["nixops.dev/paused"]
local by_annotation = paused ~= nil and paused ~= "false"
local by_spec = obj.spec ~= nil and obj.spec.suspend == true

return {
  reconcile = {disabled = by_annotation or by_spec},
  suspend = {disabled = by_annotation or by_spec},
  -- What git suspends, git resumes.
  resume = {disabled = not by_annotation},
}
