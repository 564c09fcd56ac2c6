# Declaring options, and showing them and their definitions in messages.
{ lib }:
rec {
  isOption = x: x._type or null == "option";
  mkOption = attributes: { _type = "option"; } // attributes;
  mkEnableOption = name: mkOption {
    default = false;
    example = true;
    description = "Whether to enable ${toString name}.";
    type = lib.types.bool;
  };
  mkPackageOption = pkgs: name: { default ? name, ... }:
    mkOption {
      type = lib.types.package;
      default = lib.getAttrFromPath (lib.toList default) pkgs;
      description = "The ${toString name} package to use.";
    };
  literalExpression = text: { _type = "literalExpression"; inherit text; };
  literalMD = text: { _type = "literalMD"; inherit text; };
  mdDoc = text: text;

  getValues = map (def: def.value);
  getFiles = map (def: def.file);

  # The path of an option as it is written in a module; names that need quotes get them.
  showOption = path:
    let
      placeholders = [ "<name>" "*" "<function body>" ];
      shown = part: if builtins.elem part placeholders then part else lib.escapeNixIdentifier part;
    in
    lib.concatStringsSep "." (map shown path);
  showFiles = files: lib.concatMapStringsSep " and " (file: "`${file}'") files;

  # "\n- In `file': value" for each definition; at most five lines of a value, none if it fails.
  showDefs = defs:
    let
      show = def:
        let
          attempt = builtins.tryEval (let text = lib.generators.toPretty { } def.value; in builtins.seq text text);
          lines = lib.splitString "\n" attempt.value;
          cut = lib.take 5 lines ++ lib.optional (lib.length lines > 5) "...";
          value =
            if !attempt.success then ""
            else if lib.length lines > 1 then ":\n    " + lib.concatStringsSep "\n    " cut
            else ": " + attempt.value;
        in
        "\n- In `${def.file}'${value}";
    in
    lib.concatMapStrings show defs;

  mergeEqualOption = loc: defs:
    let first = builtins.head defs; in
    if builtins.all (def: def.value == first.value) defs then first.value
    else throw (conflict loc defs);
  conflict = loc: defs:
    if lib.isOf2020 then "The option `${showOption loc}' has conflicting definitions, in ${showFiles (getFiles defs)}."
    else "The option `${showOption loc}' has conflicting definition values:${showDefs defs}\n"
    + "Use `lib.mkForce value` or `lib.mkDefault value` to change the priority on any of these definitions.";
  mergeOneOption = mergeUniqueOption { message = ""; };
  mergeUniqueOption = { message, ... }: loc: defs:
    if lib.length defs == 1 then (builtins.head defs).value
    else throw ("The option `${showOption loc}' is defined multiple times while it's expected to be unique.\n${message}"
      + "\nDefinition values:${showDefs defs}\nUse `lib.mkForce value` or `lib.mkDefault value` to change the priority on any of these definitions.");
  mergeDefaultOption = loc: defs:
    let
      values = getValues defs;
      first = builtins.head values;
    in
    if lib.length values == 1 then first
    else if builtins.all builtins.isList values then lib.concatLists values
    else if builtins.all builtins.isAttrs values then lib.mergeAttrsList values
    else if builtins.all builtins.isBool values then builtins.any lib.id values
    else if builtins.all builtins.isString values then lib.concatStrings values
    else mergeEqualOption loc defs;
}
