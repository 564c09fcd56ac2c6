-- The health of a NixMachine or NixDeployment (both kinds have the same conditions). The first rule that fits decides.

local function annotation(name)
  if obj.metadata.annotations == nil then
    return nil
  end
  return obj.metadata.annotations[name]
end

local function condition(kind)
  if obj.status == nil or obj.status.conditions == nil then
    return nil
  end
  for _, found in ipairs(obj.status.conditions) do
    if found.type == kind then
      return found
    end
  end
  return nil
end

local function health(status, found, otherwise)
  if found == nil then
    return {status = status, message = otherwise}
  end
  return {status = status, message = found.reason .. ": " .. found.message}
end

local ready = condition("Ready")

if obj.metadata.deletionTimestamp ~= nil then
  return health("Progressing", ready, "being deleted")
end
if obj.spec ~= nil and obj.spec.suspend == true then
  return {status = "Suspended", message = "spec.suspend is true"}
end
local paused = annotation("nixops.dev/paused")
if paused ~= nil and paused ~= "false" then
  return {status = "Suspended", message = "the annotation nixops.dev/paused is there"}
end
if ready == nil then
  return {status = "Progressing", message = "the operator has not looked at it yet"}
end
if obj.status.observedGeneration ~= obj.metadata.generation then
  return {status = "Progressing", message = "the operator has not looked at this change yet"}
end

local stalled = condition("Stalled")
if stalled ~= nil and stalled.status == "True" then
  return health("Degraded", stalled)
end
local reconciling = condition("Reconciling")
if reconciling ~= nil and reconciling.status == "True" then
  return health("Progressing", reconciling)
end
if ready.status == "True" then
  return health("Healthy", ready)
end
if ready.status == "False" then
  return health("Degraded", ready)
end
return health("Progressing", ready)
