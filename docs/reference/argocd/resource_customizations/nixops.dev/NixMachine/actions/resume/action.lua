-- The end of what `suspend` began.

local annotations = obj.metadata.annotations
if annotations ~= nil then
  annotations["nixops.dev/paused"] = nil
  -- Argo CD takes an empty table for a list, and then leaves the object's map as it was (util/lua, cleanReturnedObj).
  if next(annotations) == nil then
    obj.metadata.annotations = nil
  end
end
return obj
