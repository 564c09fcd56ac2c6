# The module system: evalModules { modules, prefix, specialArgs, … } → { config, options, _module, extendModules, type }.
#
#   modules ──collect──► [ { file, options, config } ] ──mergeTree──► options tree ──► config
#
# Behaviour and wording follow the NixOS manual ("Writing NixOS Modules") and the messages of nixpkgs'
# lib/modules.nix, which programs read: "The option `x' does not exist. Definition values:…".
{ lib }:
let
  inherit (lib) concatMap optional optionals showOption showDefs isOption;
  context = builtins.addErrorContext;

  isProperty = kind: x: x._type or null == kind;

  # --- Collecting -----------------------------------------------------------------------------

  moduleAttributes = [ "_class" "_file" "key" "disabledModules" "imports" "options" "config" "meta" ]
    ++ optional (!lib.isOf2020) "freeformType";

  # Any way to write a module → { file, key, imports, disabled, options, config }.
  load = args: parentFile: position: module:
    let
      isFile = builtins.isPath module || builtins.isString module || lib.isDerivation module;
      file = if isFile then toString module else parentFile;
      content = if isFile then import module else module;
      applied =
        if lib.isFunction content then context "while evaluating the module ${if isFile then "file `${file}'" else "in `${file}'"}:" (apply args file content)
        else content;
      shown = applied._file or file;
      key = applied.key or (if isFile then file else position);
      rest = removeAttrs applied moduleAttributes;
      isLong = applied ? config || applied ? options;
      freeform = config: if applied ? freeformType then mkMerge [ config { _module.freeformType = applied.freeformType; } ] else config;
    in
    if isProperty "if" applied || isProperty "merge" applied || isProperty "override" applied then
      { inherit file; key = position; imports = [ ]; disabled = [ ]; options = { }; config = applied; }
    else if builtins.isList applied then
      throw "Module imports can't be nested lists. Perhaps you meant to remove one level of lists? Definitions: ${showDefs [ { inherit file; value = applied; } ]}"
    else if !builtins.isAttrs applied then
      throw "Module `${file}' does not look like a module: expected a set, a function or a path, got ${builtins.typeOf applied}."
    else if isLong && rest != { } then
      throw ("Module `${shown}' has an unsupported attribute `${builtins.head (builtins.attrNames rest)}'. This is caused by introducing a top-level `config' or `options' attribute. "
        + "Add configuration attributes immediately on the top level instead, or move all of them (namely: ${lib.concatStringsSep " " (builtins.attrNames rest)}) into the explicit `config' attribute.")
    else {
      file = shown;
      inherit key;
      imports = applied.imports or [ ];
      disabled = applied.disabledModules or [ ];
      options = applied.options or { };
      config = (if lib.isOf2020 then lib.id else freeform) (if isLong then applied.config or { } else rest);
    };

  # A module function receives what it names; the rest of `_module.args` only if it names it, lazily.
  apply = args: file: f:
    let
      named = builtins.mapAttrs
        (name: _: context "while evaluating the module argument `${name}' in \"${file}\":" (args.${name} or args.config._module.args.${name}))
        (lib.functionArgsOf f);
    in
    f (args // named);

  collect = { modulesPath, args, modules }:
    let
      # The position names a module that has no file: stable, and never equal to another's.
      node = parentFile: position: module:
        let loaded = load args parentFile position module; in
        {
          inherit (loaded) key;
          inherit loaded;
          children = lib.imap1 (i: node loaded.file "${position}:anon-${toString i}") loaded.imports;
        };
      closure = builtins.genericClosure {
        startSet = lib.imap1 (i: node "<unknown-file>" ":anon-${toString i}") modules;
        operator = item: item.children;
      };
      keyOf = d:
        if builtins.isAttrs d then d.key
        else if builtins.isString d && !lib.hasPrefix "/" d then "${toString modulesPath}/${d}"
        else toString d;
      disabled = map keyOf (concatMap (item: item.loaded.disabled) closure);
      # A child of a disabled module goes with it unless somebody else imports it, so walk again.
      kept = builtins.genericClosure {
        startSet = builtins.filter isKept (lib.imap1 (i: node "<unknown-file>" ":anon-${toString i}") modules);
        operator = item: builtins.filter isKept item.children;
      };
      isKept = item: !(builtins.elem item.key disabled);
    in
    map (item: item.loaded) (if disabled == [ ] then closure else kept);

  # --- Properties: mkIf, mkMerge, mkOverride, mkOrder ------------------------------------------

  mkIf = condition: content: { _type = "if"; inherit condition content; };
  mkMerge = contents: { _type = "merge"; inherit contents; };
  mkOverride = priority: content: { _type = "override"; inherit priority content; };
  mkOrder = priority: content: { _type = "order"; inherit priority content; };
  defaultOverridePriority = 100;
  defaultOrderPriority = 1000;

  # A configuration → attribute sets without a property at their top. A condition moves inward
  # unevaluated: the names of a module's definitions must not depend on `config`.
  pushDown = config:
    if isProperty "merge" config then concatMap pushDown config.contents
    else if isProperty "if" config then map (builtins.mapAttrs (_: mkIf config.condition)) (pushDown config.content)
    else if isProperty "override" config then map (builtins.mapAttrs (_: mkOverride config.priority)) (pushDown config.content)
    else [ config ];

  # One definition's value → the values that count: conditions decided, merges opened.
  discharge = value:
    if isProperty "merge" value then concatMap discharge value.contents
    else if isProperty "if" value then
      if !builtins.isBool value.condition then throw "‘mkIf’ called with a non-Boolean condition"
      else optionals value.condition (discharge value.content)
    else [ value ];

  # Definitions → those of the strongest priority, in their order.
  strongest = defs:
    let
      priority = def: if isProperty "override" def.value then def.value.priority else defaultOverridePriority;
      best = builtins.foldl' (p: def: lib.min p (priority def)) 9999 defs;
      open = def: if isProperty "override" def.value then def // { value = def.value.content; } else def;
    in
    { inherit best; defs = map open (builtins.filter (def: priority def == best) defs); };

  ordered = defs:
    let
      isOrder = def: isProperty "order" def.value;
      position = def: if isOrder def then def.value.priority else defaultOrderPriority;
      open = def: if isOrder def then def // { value = def.value.content; } else def;
    in
    if builtins.any isOrder defs then map open (lib.sortOn position defs) else defs;

  # --- Values ---------------------------------------------------------------------------------

  # All definitions of one option → { isDefined, value, defs, priority }.
  mergeDefinitions = loc: type: rawDefs:
    let
      live = concatMap
        (def: map (value: def // { inherit value; }) (context "while evaluating definitions from `${def.file}':" (discharge def.value)))
        rawDefs;
      picked = strongest live;
      defs = ordered picked.defs;
      wrong = builtins.filter (def: !type.check def.value) defs;
    in
    {
      inherit defs;
      isDefined = defs != [ ];
      priority = picked.best;
      value =
        if defs == [ ] then throw "The option `${showOption loc}' was accessed but has no value defined. Try setting the option."
        else if wrong != [ ] then
          throw (if lib.isOf2020
            then "The option value `${showOption loc}' in `${(builtins.head wrong).file}' is not of type `${type.description}'."
            else "A definition for option `${showOption loc}' is not of type `${type.description}'. Definition values:${showDefs wrong}")
        else type.merge loc defs;
    };

  # Declarations of one option (more than one where a module extends a submodule) → one.
  mergeDeclarations = loc: decls:
    let
      step = a: decl:
        let
          b = decl.option;
          bothSay = name: a ? ${name} && b ? ${name};
          clash = lib.findFirst bothSay null [ "default" "defaultText" "example" "description" "apply" ];
          typed = b // lib.optionalAttrs (a ? type && b ? type) { type = a.type.typeMerge b.type; };
        in
        if clash != null || (bothSay "type" && typed.type == null) then
          throw "The option `${showOption loc}' in `${decl.file}' is already declared in ${lib.showFiles (map (d: d.file) (builtins.filter (d: d.file != decl.file) decls))}."
        else a // typed;
    in
    { type = lib.types.unspecified; } // builtins.foldl' step { } decls;

  evalOption = loc: decls: defs:
    let
      option = mergeDeclarations loc decls;
      type = option.type;
      fallback = optional (option ? default) {
        file = (builtins.head decls).file;
        value = mkOverride 1500 option.default;
      };
      merged = mergeDefinitions loc type (defs ++ fallback);
      writers = builtins.filter (def: builtins.elem def.file (map (d: d.file) defs)) merged.defs;
      value =
        if (option.readOnly or false) && builtins.length writers > 1 then
          throw "The option `${showOption loc}' is read-only, but it's set multiple times. Definition values:${showDefs writers}"
        else if !merged.isDefined && type.emptyValue ? value then type.emptyValue.value
        else merged.value;
    in
    option // {
      inherit loc;
      _type = "option";
      value = context "while evaluating the option `${showOption loc}':" ((option.apply or lib.id) value);
      isDefined = merged.isDefined;
      highestPrio = merged.priority;
      definitions = map (def: def.value) merged.defs;
      definitionsWithLocations = merged.defs;
      files = map (def: def.file) merged.defs;
      declarations = map (d: d.file) decls;
      __toString = _: showOption loc;
    };

  # --- The tree -------------------------------------------------------------------------------

  # Declarations and definitions below `loc` → { options, config, unmatched }.
  # decls: [ { file, options } ]; defs: [ { file, value } ], values being configurations.
  mergeTree = loc: decls: defs:
    let
      declsByName = builtins.zipAttrsWith (_: found: found)
        (map (decl: builtins.mapAttrs (_: option: { inherit (decl) file; inherit option; }) decl.options) decls);
      contents = concatMap (def: map (value: { inherit (def) file; inherit value; }) (pushDown def.value)) defs;
      notASet = builtins.filter (def: !builtins.isAttrs def.value) contents;
      defsByName =
        if notASet != [ ] then
          throw ("You're trying to define a value of type `${builtins.typeOf (builtins.head notASet).value}'\nrather than an attribute set for the option\n`${showOption loc}'!\n\n"
            + "This usually happens if `${showOption loc}' has option\ndefinitions inside that are not matched. Please check how to properly define\nthis option by e.g. referring to `man 5 configuration.nix'!\n"
            + "Definition values:${showDefs notASet}")
        else builtins.zipAttrsWith (_: found: found)
          (map (def: builtins.mapAttrs (_: value: { inherit (def) file; inherit value; }) def.value) contents);
      branch = name: found:
        let
          here = loc ++ [ name ];
          defsHere = defsByName.${name} or [ ];
          leaves = builtins.filter (d: isOption d.option) found;
          sets = builtins.filter (d: !isOption d.option) found;
        in
        if leaves == [ ] then
          let sub = mergeTree here (map (d: { inherit (d) file; options = d.option; }) found) defsHere;
          in { inherit (sub) options config unmatched; }
        else if sets != [ ] then
          throw "The option `${showOption here}' in `${(builtins.head leaves).file}' is a prefix of options in ${lib.showFiles (map (d: d.file) sets)}."
        else
          let option = evalOption here leaves defsHere; in { options = option; config = option.value; unmatched = [ ]; };
      branches = builtins.mapAttrs branch declsByName;
      strayNames = builtins.attrNames (removeAttrs defsByName (builtins.attrNames declsByName));
      strays = concatMap (name: map (def: { inherit (def) file value; loc = loc ++ [ name ]; }) defsByName.${name}) strayNames;
    in
    {
      options = builtins.mapAttrs (_: b: b.options) branches;
      config = builtins.mapAttrs (_: b: b.config) branches;
      # Conditions that are off leave nothing behind: a definition under a false mkIf may name anything.
      unmatched = concatMap (b: b.unmatched) (builtins.attrValues branches) ++ strays;
    };

  ownOptions = {
    _file = "lib/modules.nix";
    options._module = {
      args = lib.mkOption { type = lib.types.lazyAttrsOf lib.types.raw; default = { }; internal = true; };
      check = lib.mkOption { type = lib.types.bool; default = true; internal = true; };
      freeformType = lib.mkOption { type = lib.types.nullOr lib.types.raw; default = null; internal = true; };
      specialArgs = lib.mkOption { type = lib.types.raw; default = { }; internal = true; readOnly = true; };
    };
  };

  # Siblings of the first name that no option has, nearest first.
  suggestions = prefix: options: loc:
    let
      go = set: path:
        let name = builtins.head path; in
        if builtins.isAttrs set && !isOption set && set ? ${name} && builtins.tail path != [ ]
        then go set.${name} (builtins.tail path)
        else { inherit name path; siblings = if isOption set || !builtins.isAttrs set then [ ] else builtins.attrNames (removeAttrs set [ "_module" ]); };
      relative = lib.drop (builtins.length prefix) loc;
      found = go options relative;
      parent = lib.take (builtins.length loc - builtins.length found.path) loc;
      nearest = lib.take 3 (lib.sortOn (lib.levenshtein found.name) found.siblings);
      names = map (name: "`${showOption (parent ++ [ name ])}'") nearest;
    in
    if names == [ ] then ""
    else if builtins.length names == 1 then "\n\nDid you mean ${builtins.head names}?"
    else "\n\nDid you mean ${lib.concatStringsSep ", " (lib.init names)} or ${lib.last names}?";

  refuseUnmatched = prefix: options: stray:
    let
      shown = showOption stray.loc;
      base = context "while evaluating the error message for definitions for `${shown}', which is an option that does not exist"
        (context "while evaluating a definition from `${stray.file}'"
          "The option `${shown}' does not exist. Definition values:${showDefs [ stray ]}");
    in
    if lib.isOf2020 then throw "The option `${shown}' defined in `${stray.file}' does not exist."
    else if builtins.attrNames options == [ "_module" ] then
      throw (base + (if prefix == [ ]
        then "\n\nIt seems as if you're trying to declare an option by placing it into `config' rather than `options'!\n"
        else "\n\nHowever there are no options defined in `${showOption prefix}'. Are you sure you've\ndeclared your options properly? This can happen if you e.g. declared your options in `types.submodule'\nunder `config' rather than `options'.\n"))
    else throw (base + suggestions prefix options stray.loc);

  evalModules = { modules, prefix ? [ ], specialArgs ? { }, args ? { }, check ? true, modulesPath ? specialArgs.modulesPath or "", class ? null }@call:
    let
      given = specialArgs // { inherit lib config options specialArgs; } // lib.optionalAttrs (class != null) { _class = class; };
      parameters = {
        _file = "lib/modules.nix";
        config._module = {
          args = args // { inherit extendModules; moduleType = type; };
          check = mkOverride 1500 check;
          inherit specialArgs;
        };
      };
      loaded = collect { inherit modulesPath; args = given; modules = [ ownOptions parameters ] ++ modules; };
      tree = mergeTree prefix
        (map (m: { inherit (m) file options; }) loaded)
        (map (m: { inherit (m) file; value = m.config; }) loaded);
      options = tree.options;
      live = concatMap (stray: map (value: stray // { inherit value; }) (discharge stray.value)) tree.unmatched;
      freeformType = tree.config._module.freeformType;
      freeform =
        if freeformType == null || tree.unmatched == [ ] then { }
        else (mergeDefinitions prefix freeformType (map (stray: { inherit (stray) file; value = lib.setAttrByPath (lib.drop (builtins.length prefix) stray.loc) stray.value; }) tree.unmatched)).value;
      full = if freeformType == null then tree.config else lib.recursiveUpdateUntil (_: a: b: !(builtins.isAttrs a && builtins.isAttrs b) || lib.isDerivation a || lib.isDerivation b) freeform tree.config;
      config = full;
      checked =
        if freeformType == null && tree.config._module.check && live != [ ]
        then refuseUnmatched prefix options (builtins.head live)
        else null;
      extendModules = { modules ? [ ], specialArgs ? { }, prefix ? call.prefix or [ ] }:
        evalModules (call // {
          inherit prefix;
          modules = call.modules ++ modules;
          specialArgs = (call.specialArgs or { }) // specialArgs;
        });
      type = lib.types.submoduleWith { inherit modules specialArgs; };
    in
    {
      inherit extendModules type;
      options = builtins.seq checked options;
      config = builtins.seq checked (removeAttrs config [ "_module" ]);
      _module = builtins.seq checked tree.config._module;
      _type = "configuration";
      class = class;
    };

  renamed = { from, to, warning }: { config, options, ... }:
    let target = lib.getAttrFromPath to config; in
    {
      options = lib.setAttrByPath from (lib.mkOption {
        description = "Alias of ${showOption to}.";
        visible = false;
        apply = _: target;
        type = (lib.getAttrFromPath to options).type or lib.types.unspecified;
      });
      config = mkMerge [
        (lib.optionalAttrs (warning && options ? warnings) {
          warnings = optional (lib.getAttrFromPath from options).isDefined
            "The option `${showOption from}' defined in ${lib.showFiles (lib.getAttrFromPath from options).files} has been renamed to `${showOption to}'.";
        })
        (lib.setAttrByPath to (mkMerge (map (def: mkOverride (lib.getAttrFromPath from options).highestPrio def)
          (lib.getAttrFromPath from options).definitions)))
      ];
    };
in
{
  inherit evalModules mergeDefinitions mkIf mkMerge mkOverride mkOrder defaultOverridePriority;
  mkForce = mkOverride 50;
  mkVMOverride = mkOverride 10;
  mkImageMediaOverride = mkOverride 60;
  mkDefault = mkOverride 1000;
  mkOptionDefault = mkOverride 1500;
  mkBefore = mkOrder 500;
  mkAfter = mkOrder 1500;
  mkAssert = condition: message: content: mkIf (if condition then true else throw "\nFailed assertion: ${message}") content;
  setDefaultModuleLocation = file: module: { _file = file; imports = [ module ]; };
  mkAliasOptionModule = from: to: renamed { inherit from to; warning = false; };
  mkRenamedOptionModule = from: to: renamed { inherit from to; warning = true; };
  mkRemovedOptionModule = path: reason: { options, ... }: {
    options = lib.setAttrByPath path (lib.mkOption { visible = false; description = "Removed."; });
    config.assertions = [{
      assertion = !(lib.getAttrFromPath path options).isDefined;
      message = "The option definition `${showOption path}' in ${lib.showFiles (lib.getAttrFromPath path options).files} no longer has any effect; please remove it.\n${reason}";
    }];
  };
}
