-- The operator looks, and changes nothing.

if obj.metadata.annotations == nil then
  obj.metadata.annotations = {}
end
obj.metadata.annotations["nixops.dev/paused"] = "true"
return obj
