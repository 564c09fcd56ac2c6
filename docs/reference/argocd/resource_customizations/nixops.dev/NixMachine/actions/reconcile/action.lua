-- Look now, and read Secrets and ConfigMaps anew. A NixDeployment passes it on to its machines.

local os = require("os")

if obj.metadata.annotations == nil then
  obj.metadata.annotations = {}
end
obj.metadata.annotations["nixops.dev/reconcile-requested-at"] = os.date("!%Y-%m-%dT%XZ")
return obj
