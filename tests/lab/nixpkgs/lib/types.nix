# Option types: { name, description, check, merge loc defs, emptyValue, typeMerge }. Descriptions are
# those of nixpkgs' lib/types.nix: they appear in "is not of type `…'".
{ lib }:
let
  inherit (lib) mergeEqualOption mergeOneOption showOption showDefs;
  inherit (lib.modules) mergeDefinitions evalModules;

  mkOptionType = { name, description ? name, check ? (_: true), merge ? lib.mergeDefaultOption, emptyValue ? { }, typeMerge ? null, ... }@type:
    type // {
      _type = "option-type";
      inherit name description check merge emptyValue;
      functor = { inherit name; };
      # Two declarations of one option agree if their types are called the same.
      typeMerge = if typeMerge != null then typeMerge else other: if other.name == name && other.description == description then other else null;
    };

  # Words in brackets where a description has several parts: "list of (null or string)".
  part = type: if builtins.match ".* (or|of) .*" type.description == null then type.description else "(${type.description})";

  isWhole = x: builtins.isInt x;
  between = low: high: mkOptionType {
    name = "intBetween";
    description = "integer between ${toString low} and ${toString high} (both inclusive)";
    check = x: isWhole x && x >= low && x <= high;
    merge = mergeEqualOption;
  };
  unsigned = bits: highest: (between 0 highest) // {
    description = "${toString bits} bit unsigned integer; between 0 and ${toString highest} (both inclusive)";
  };

  string = mkOptionType { name = "str"; description = "string"; check = builtins.isString; merge = mergeEqualOption; };
  separatedString = sep: mkOptionType {
    name = "separatedString";
    description = if sep == "" then "Concatenated string" else "strings concatenated with ${builtins.toJSON sep}";
    check = builtins.isString;
    merge = _: defs: lib.concatStringsSep sep (lib.getValues defs);
  };

  elements = loc: type: defs: lib.concatLists (lib.imap1
    (n: def: lib.imap1
      (m: value: mergeDefinitions (loc ++ [ "[definition ${toString n}-entry ${toString m}]" ]) type [ { inherit (def) file; inherit value; } ])
      def.value)
    defs);

  attrsOfWith = { type, name }: let lazy = name == "lazyAttrsOf"; in mkOptionType {
    inherit name;
    description = "${if lazy then "lazy " else ""}attribute set of ${part type}";
    check = builtins.isAttrs;
    emptyValue.value = { };
    nestedType = type;
    typeMerge = other: if other.functor.name == name && type.typeMerge other.nestedType != null then attrsOfWith { inherit name; type = type.typeMerge other.nestedType; } else null;
    merge = loc: defs:
      let
        byName = builtins.zipAttrsWith (_: found: found)
          (map (def: builtins.mapAttrs (_: value: { inherit (def) file; inherit value; }) def.value)
            (lib.concatMap (def: map (value: { inherit (def) file; inherit value; }) (opened def.value)) defs));
        merged = builtins.mapAttrs (name: found: mergeDefinitions (loc ++ [ name ]) type found) byName;
        shown = name: m: builtins.addErrorContext "while evaluating the option `${showOption (loc ++ [ name ])}':" m.value;
      in
      # Lazily, a name whose definitions are all switched off is still there, and fails when read.
      if lazy then builtins.mapAttrs (name: m: if !m.isDefined && type.emptyValue ? value then type.emptyValue.value else shown name m) merged
      else builtins.mapAttrs shown (lib.filterAttrs (_: m: m.isDefined) merged);
    };
  # mkIf and mkMerge may stand around the whole set.
  opened = value: if value._type or null == "merge" || value._type or null == "if" then lib.concatMap opened (value.contents or (lib.optional value.condition value.content)) else [ value ];

  submoduleWith = { modules, specialArgs ? { }, shorthandOnlyDefinesConfig ? false, description ? "submodule", class ? null }@given: mkOptionType {
    name = "submodule";
    inherit description;
    check = x: builtins.isAttrs x || lib.isFunction x || types.path.check x;
    emptyValue.value = (evalModules { inherit modules specialArgs; }).config;
    subModules = modules;
    merge = loc: defs: (evalModules {
      prefix = loc;
      inherit specialArgs;
      args.name = lib.last loc;
      modules = modules ++ map
        (def: {
          _file = def.file;
          imports = [ (if builtins.isAttrs def.value && shorthandOnlyDefinesConfig then { config = def.value; } else def.value) ];
        })
        defs;
    }).config;
    typeMerge = other: if other ? subModules then submoduleWith (given // { modules = modules ++ other.subModules; }) else null;
  };

  types = rec {
    inherit mkOptionType separatedString submoduleWith;
    raw = mkOptionType { name = "raw"; description = "raw value"; merge = mergeOneOption; };
    unspecified = mkOptionType { name = "unspecified"; description = "unspecified value"; };
    anything = mkOptionType {
      name = "anything";
      merge = loc: defs:
        let values = lib.getValues defs; in
        if builtins.length values == 1 then builtins.head values
        else if builtins.all (v: builtins.isAttrs v && !lib.isDerivation v) values then (lazyAttrsOf anything).merge loc defs
        else if builtins.all builtins.isList values then lib.concatLists values
        else mergeEqualOption loc defs;
    };
    attrs = mkOptionType { name = "attrs"; description = "attribute set"; check = builtins.isAttrs; emptyValue.value = { }; merge = _: defs: lib.mergeAttrsList (lib.getValues defs); };
    bool = mkOptionType { name = "bool"; description = "boolean"; check = builtins.isBool; merge = mergeEqualOption; };
    boolByOr = mkOptionType { name = "boolByOr"; description = "boolean (merged using or)"; check = builtins.isBool; merge = _: defs: builtins.any lib.id (lib.getValues defs); };
    int = mkOptionType { name = "int"; description = "signed integer"; check = isWhole; merge = mergeEqualOption; };
    ints = {
      inherit between;
      positive = mkOptionType { name = "positiveInt"; description = "positive integer, meaning >0"; check = x: isWhole x && x > 0; merge = mergeEqualOption; };
      unsigned = mkOptionType { name = "unsignedInt"; description = "unsigned integer, meaning >=0"; check = x: isWhole x && x >= 0; merge = mergeEqualOption; };
      u8 = unsigned 8 255;
      u16 = unsigned 16 65535;
      u32 = unsigned 32 4294967295;
    };
    port = ints.u16;
    float = mkOptionType { name = "float"; description = "floating point number"; check = builtins.isFloat; merge = mergeEqualOption; };
    number = either int float;
    str = string;
    nonEmptyStr = mkOptionType { name = "nonEmptyStr"; description = "non-empty string"; check = x: builtins.isString x && builtins.match "[ \t\n]*" x == null; merge = mergeEqualOption; };
    singleLineStr = mkOptionType { name = "singleLineStr"; description = "(optionally newline-terminated) single-line string"; check = x: builtins.isString x && builtins.match "[^\n\r]*\n?" x != null; merge = loc: defs: lib.removeSuffix "\n" (mergeEqualOption loc defs); };
    strMatching = pattern: mkOptionType { name = "strMatching ${lib.escapeNixString pattern}"; description = "string matching the pattern ${pattern}"; check = x: builtins.isString x && builtins.match pattern x != null; merge = mergeEqualOption; };
    lines = separatedString "\n";
    commas = separatedString ",";
    envVar = separatedString ":";
    path = mkOptionType {
      name = "path";
      description = "absolute path";
      check = x: lib.isStringLike x && builtins.substring 0 1 (toString x) == "/";
      merge = mergeEqualOption;
    };
    pathInStore = mkOptionType { name = "pathInStore"; description = "path in the Nix store"; check = x: lib.isStringLike x && lib.hasPrefix "${builtins.storeDir}/" (toString x); merge = mergeEqualOption; };
    package = mkOptionType { name = "package"; check = x: lib.isDerivation x || lib.isStorePath x; merge = mergeOneOption; };
    shellPackage = package // { check = x: lib.isDerivation x && x ? shellPath; };
    enum = values: mkOptionType {
      name = "enum";
      description = if values == [ ] then "impossible (empty enum)" else if builtins.length values == 1 then "value ${shownValue (builtins.head values)} (singular enum)" else "one of ${lib.concatMapStringsSep ", " shownValue values}";
      check = x: builtins.elem x values;
      merge = mergeEqualOption;
    };
    shownValue = v: if builtins.isString v then builtins.toJSON v else if builtins.isBool v then lib.boolToString v else if builtins.isInt v then toString v else "<${builtins.typeOf v}>";
    listOf = type: mkOptionType {
      name = "listOf";
      description = "list of ${part type}";
      check = builtins.isList;
      emptyValue.value = [ ];
      merge = loc: defs: map (m: m.value) (builtins.filter (m: m.isDefined) (elements loc type defs));
    };
    nonEmptyListOf = type: (listOf type) // { description = "non-empty (list of ${part type})"; check = x: builtins.isList x && x != [ ]; emptyValue = { }; };
    attrsOf = type: attrsOfWith { inherit type; name = "attrsOf"; };
    lazyAttrsOf = type: attrsOfWith { inherit type; name = "lazyAttrsOf"; };
    nullOr = type: mkOptionType {
      name = "nullOr";
      description = "null or ${part type}";
      check = x: x == null || type.check x;
      emptyValue.value = null;
      merge = loc: defs:
        let nulls = builtins.filter (def: def.value == null) defs; in
        if nulls == [ ] then type.merge loc defs
        else if builtins.length nulls == builtins.length defs then null
        else throw "The option `${showOption loc}' is defined both null and not null, in ${lib.showFiles (lib.getFiles defs)}.";
    };
    either = a: b: mkOptionType {
      name = "either";
      description = "${part a} or ${part b}";
      check = x: a.check x || b.check x;
      merge = loc: defs:
        if builtins.all (def: a.check def.value) defs then a.merge loc defs
        else if builtins.all (def: b.check def.value) defs then b.merge loc defs
        else mergeOneOption loc defs;
    };
    oneOf = list: builtins.foldl' either (builtins.head list) (builtins.tail list);
    coercedTo = from: convert: to: mkOptionType {
      name = "coercedTo";
      description = "${part to} or ${part from} convertible to it";
      check = x: (from.check x && to.check (convert x)) || to.check x;
      emptyValue = to.emptyValue;
      merge = loc: defs: to.merge loc (map (def: if from.check def.value then def // { value = convert def.value; } else def) defs);
    };
    uniq = type: type // { merge = mergeOneOption; };
    unique = { message }@said: type: type // { merge = loc: defs: if builtins.length defs == 1 then type.merge loc defs else lib.mergeUniqueOption said loc defs; };
    addCheck = type: check: type // { check = x: type.check x && check x; };
    functionTo = type: mkOptionType {
      name = "functionTo";
      description = "function that evaluates to a(n) ${type.description}";
      check = lib.isFunction;
      merge = loc: defs: arg: (mergeDefinitions (loc ++ [ "<function body>" ]) type (map (def: def // { value = def.value arg; }) defs)).value;
    };
    submodule = modules: submoduleWith { modules = lib.toList modules; shorthandOnlyDefinesConfig = true; };
    deferredModule = mkOptionType {
      name = "deferredModule";
      description = "module";
      check = x: builtins.isAttrs x || lib.isFunction x || path.check x;
      merge = loc: defs: { imports = map (def: lib.modules.setDefaultModuleLocation "${def.file}, via option ${showOption loc}" def.value) defs; };
    };
  };
in
# types.anything is of September 2020; until then "list or attribute set of" was a type of its own.
if lib.isOf2020 then removeAttrs types [ "anything" ] // { loaOf = type: attrsOfWith { inherit type; name = "loaOf"; }; }
else types
