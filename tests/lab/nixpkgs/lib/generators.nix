# Values to text.
{ lib }:
rec {
  mkValueStringDefault = _: v:
    if v == true then "true" else if v == false then "false" else if v == null then "null" else toString v;
  mkKeyValueDefault = { mkValueString ? mkValueStringDefault { } }: sep: key: value: "${lib.escape [ sep ] key}${sep}${mkValueString value}";
  toKeyValue = { mkKeyValue ? mkKeyValueDefault { } "=", listsAsDuplicateKeys ? false, indent ? "" }: set:
    let
      line = key: value: "${indent}${mkKeyValue key value}\n";
      lines = key: value: if listsAsDuplicateKeys then lib.concatMapStrings (line key) (lib.toList value) else line key value;
    in
    lib.concatStrings (lib.mapAttrsToList lines set);
  toINI = { mkSectionName ? lib.escape [ "[" "]" ], mkKeyValue ? mkKeyValueDefault { } "=", listsAsDuplicateKeys ? false }: set:
    lib.concatStringsSep "\n" (lib.mapAttrsToList
      (name: keys: "[${mkSectionName name}]\n${toKeyValue { inherit mkKeyValue listsAsDuplicateKeys; } keys}")
      set);
  toJSON = _: builtins.toJSON;

  # A value as Nix would write it, for messages. Nested deeper than `depth` sets or lists it stays
  # "<unevaluated>", so that a definition of a whole package set can be shown.
  toPretty = { multiline ? true, depth ? 10 }:
    let
      go = level: indent: v:
        let
          inner = if multiline then indent + "  " else "";
          gap = if multiline then "\n" + inner else " ";
          end = if multiline then "\n" + indent else " ";
          bracketed = open: close: items: if items == [ ] then "${open} ${close}" else open + gap + lib.concatStringsSep gap items + end + close;
          text = lib.concatStringsSep "\n${inner}" (lib.splitString "\n" (lib.replaceStrings [ "''" "\${" ] [ "'''" "''\${" ] v));
        in
        if level > depth then "<unevaluated>"
        else if builtins.isString v then
          if multiline && lib.hasInfix "\n" v then "''${gap}${text}''" else builtins.toJSON v
        else if v == null then "null"
        else if builtins.isBool v then lib.boolToString v
        else if builtins.isInt v || builtins.isFloat v then toString v
        else if builtins.isPath v then toString v
        else if builtins.isList v then bracketed "[" "]" (map (go (level + 1) inner) v)
        else if lib.isFunction v then
          let
            args = if builtins.isFunction v then builtins.functionArgs v else lib.functionArgsOf v;
            shown = lib.mapAttrsToList (name: optional: if optional then name + "?" else name) args;
          in
          if shown == [ ] then "<function>" else "<function, args: {${lib.concatStringsSep ", " shown}}>"
        else if v ? type && v.type == "derivation" then "<derivation ${v.name or "???"}>"
        else bracketed "{" "}" (lib.mapAttrsToList (name: x: "${lib.escapeNixIdentifier name} = ${go (level + 1) inner x};") v);
    in
    go 0 "";
}
