# The options of NixOps, so that a configuration which was written for it evaluates unchanged.
#
# request (see entry.nix)  →  NixOS module
#
# Names and defaults are those of NixOps 2 and its EC2 backend (NixOps manual, "List of options"). What they say has no
# effect here; what would have protected something, or would put a secret into the store, is refused.
request:
{
  config,
  lib,
  options,
  ...
}:
let
  inherit (lib) mkOption types;

  # Sets are merged name by name, lists are joined, anything else must be equal. Not types.anything: trees of 2020 do
  # not have it, and it refuses two lists.
  given = lib.mkOptionType {
    name = "nixopsOption";
    description = "option of NixOps";
    merge =
      loc: defs:
      let
        every = test: lib.all (def: test def.value) defs;
      in
      if builtins.length defs == 1 && !(builtins.isAttrs (builtins.head defs).value) then
        (builtins.head defs).value
      else if every (value: builtins.isAttrs value && !lib.isDerivation value) then
        (types.lazyAttrsOf given).merge loc defs
      else if every builtins.isList then
        lib.concatLists (map (def: def.value) defs)
      else
        lib.mergeEqualOption loc defs;
  };

  # Trees until September 2020 take a list of file systems, too; two declarations of an option must agree on that.
  fileSystemsOf =
    if types ? loaOf && (types.loaOf types.unspecified).functor.name == "loaOf" then types.loaOf else types.attrsOf;

  deploymentDefaults = {
    inherit (request) uuid arguments;
    name = request.deployment;
    targetEnv = if request.isEc2 then "ec2" else "none";
    targetHost = request.name;
    targetPort = 22;
    targetUser = null;
    alwaysActivate = true;
    hasFastConnection = false;
    owners = [ ];
    sshOptions = [ ];
    provisionSSHKey = true;
    privilegeEscalationCommand = [
      "sudo"
      "-H"
    ];
    keys = { };
    tags = { };
    route53 = { };
    ec2 = { };
    inherit (withoutCounterpart) autoLuks autoRaid0 encryptedLinksTo storeKeysOnMachine;
  };

  # Options that change what is on the disk or on the wire, by their defaults.
  withoutCounterpart = {
    autoLuks = { };
    autoRaid0 = { };
    encryptedLinksTo = [ ];
    storeKeysOnMachine = false;
  };

  ec2Defaults = {
    accessKeyId = "";
    region = "";
    zone = "";
    tenancy = "default";
    ebsBoot = true;
    ebsInitialRootDiskSize = 0;
    ebsOptimized = false;
    ami = "";
    instanceType = "m1.small";
    instanceId = "";
    instanceProfile = "";
    keyPair = "";
    privateKey = "";
    securityGroups = [ "default" ];
    securityGroupIds = [ "default" ];
    subnetId = "";
    associatePublicIpAddress = false;
    usePrivateIpAddress = false;
    sourceDestCheck = true;
    placementGroup = "";
    tags = { };
    blockDeviceMapping = { };
    elasticIPv4 = "";
    physicalProperties = { };
    spotInstancePrice = 0;
    spotInstanceTimeout = 0;
    spotInstanceRequestType = "one-time";
    spotInstanceInterruptionBehavior = "terminate";
  };

  # Old networks give a key's text itself in place of its options.
  keyWithDefaults =
    name: key:
    let
      said = if lib.isAttrs key then key else { text = key; };
      destDir = said.destDir or "/run/keys";
    in
    {
      inherit destDir;
      path = "${destDir}/${name}";
      user = "root";
      group = "root";
      permissions = "0600";
      uploadAt = "pre-activation";
    }
    // said;

  # What the operator delivers, in NixOps' words.
  delivered = lib.mapAttrs (_: key: {
    inherit (key) path user group permissions;
    destDir = dirOf key.path;
    uploadAt = if key.isFirst then "pre-activation" else "post-activation";
  }) request.keys;

  withDefaults =
    said:
    let
      known = deploymentDefaults // said;
    in
    known
    // {
      ec2 = ec2Defaults // known.ec2;
      # Where a key that the NixMachine declares lies says the NixMachine.
      keys = lib.mapAttrs (name: key: keyWithDefaults name key // delivered.${name} or { }) (delivered // known.keys);
    };

  # Only what somebody defined.
  said = options.deployment.definitions;
  isSaid = name: lib.any (definition: definition ? ${name}) said;
  saidNames = lib.unique (lib.concatMap lib.attrNames said);

  # Options of deployment.keys that hold a secret, or the way to one (NixOps manual, "Managing keys").
  secretOptions = [
    "text"
    "keyFile"
    "keyCommand"
  ];
  keysWithContent = lib.filter (
    name:
    let
      key = config.deployment.keys.${name};
    in
    lib.any (option: (key.${option} or null) != null) secretOptions
  ) (lib.attrNames config.deployment.keys);

  # What modules themselves say of keys, without our defaults and without the NixMachine's words.
  asked =
    if said == [ ] then
      { }
    else
      (given.merge options.deployment.loc (lib.zipListsWith (file: value: { inherit file value; }) options.deployment.files said)).keys or { };

  # An option of deployment.keys → the field of spec.keys that says it.
  fields = {
    path = "path";
    destDir = "directory";
    user = "user";
    group = "group";
    permissions = "permissions";
    uploadAt = "upload";
  };

  # Where a module relies on another place or owner than the one that the key is delivered with.
  keysOtherwise = lib.concatMap (
    name:
    let
      key = asked.${name} or { };
      text = option: value: (if option == "permissions" then lib.removePrefix "0" else lib.id) (toString value);
      differs = option: key ? ${option} && text option key.${option} != text option delivered.${name}.${option};
    in
    lib.optionals (lib.isAttrs key) (
      map (option: { inherit name option; wanted = toString key.${option}; }) (
        lib.filter differs (lib.attrNames fields)
      )
    )
  ) (lib.attrNames delivered);

  encryptedDisks = lib.filter (
    name:
    let
      disk = config.fileSystems.${name}.ec2;
    in
    disk != null && (disk.encrypt or false) && (disk.encryptionType or "luks") == "luks"
  ) (lib.attrNames config.fileSystems);

  # A fact of the machine; `false`: one that nobody can find out.
  address =
    option:
    let
      found = request.fact "nodes.${request.name}.config.networking.${option}";
    in
    mkOption {
      type = types.nullOr types.str;
      default =
        if found == false then
          throw "networking.${option} of ${request.name} is not known, as it is a given host: set it in a module of that machine"
        else
          found;
      defaultText = "what EC2 says of the machine";
      description = "An IPv4 address of this machine, null if it has none.";
    };
in
{
  _file = "the options of NixOps";

  options = {
    deployment = mkOption {
      type = given;
      default = { };
      apply = withDefaults;
      description = "Options of NixOps. They have no effect: the NixMachine says where and how a machine is deployed.";
    };

    networking.publicIPv4 = address "publicIPv4";
    networking.privateIPv4 = address "privateIPv4";

    fileSystems = mkOption {
      type = fileSystemsOf (
        types.submodule {
          options.ec2 = mkOption {
            type = types.nullOr given;
            default = null;
            description = "The EC2 disk of this mount point. It has no effect: the NixMachine says which volumes there are.";
          };
        }
      );
    };
  };

  config = {
    assertions =
      map (name: {
        assertion = false;
        message = "deployment.keys.${name} gives the content of a key in Nix, where it would become world-readable in the store: remove it, and name a Secret for it in spec.keys";
      }) keysWithContent
      ++ map (one: {
        assertion = false;
        message = "deployment.keys.${one.name}.${one.option} is \"${one.wanted}\", and the key is delivered with \"${toString delivered.${one.name}.${one.option}}\": say it as ${fields.${one.option}} of spec.keys, or remove it from the module";
      }) keysOtherwise
      ++ map (name: {
        assertion = isSaid name -> config.deployment.${name} == withoutCounterpart.${name};
        message = "deployment.${name} of NixOps has no counterpart here: remove it, and do in NixOS itself what it did";
      }) (lib.attrNames withoutCounterpart)
      ++ map (name: {
        assertion = false;
        message = "fileSystems.\"${name}\".ec2.encrypt asks for LUKS, which has no counterpart here: remove it, or let EC2 encrypt the volume (encryptionType = \"ebs\")";
      }) encryptedDisks;

    warnings = lib.optional (
      saidNames != [ ]
    ) "deployment.{${lib.concatStringsSep ", " saidNames}} of NixOps has no effect: the NixMachine's spec decides";
  };
}
