# Functions on strings.
{ lib }:
let
  inherit (builtins) stringLength substring replaceStrings isString;
  quoted = c: "\\" + c;
in
rec {
  inherit (builtins) stringLength substring replaceStrings concatStringsSep match split unsafeDiscardStringContext hashString typeOf;

  concatStrings = concatStringsSep "";
  concatMapStrings = f: list: concatStrings (map f list);
  concatMapStringsSep = sep: f: list: concatStringsSep sep (map f list);
  concatImapStringsSep = sep: f: list: concatStringsSep sep (lib.imap1 f list);
  concatLines = concatMapStrings (line: line + "\n");
  optionalString = condition: text: if condition then text else "";
  hasPrefix = prefix: text: substring 0 (stringLength prefix) text == prefix;
  hasSuffix = suffix: text:
    let
      n = stringLength text;
      s = stringLength suffix;
    in
    n >= s && substring (n - s) s text == suffix;
  hasInfix = infix: text: builtins.length (builtins.split (escapeRegex infix) text) > 1;
  removePrefix = prefix: text:
    if hasPrefix prefix text then substring (stringLength prefix) (stringLength text) text else text;
  removeSuffix = suffix: text:
    if hasSuffix suffix text then substring 0 (stringLength text - stringLength suffix) text else text;
  stringToCharacters = text: builtins.genList (i: substring i 1 text) (stringLength text);
  splitString = sep: text:
    builtins.filter isString (builtins.split (escapeRegex (toString sep)) (toString text));
  escape = characters: replaceStrings characters (map quoted characters);
  escapeRegex = escape (stringToCharacters "\\[{()^$?*+|.");
  escapeShellArg = arg:
    let text = toString arg; in
    if match "[[:alnum:],._+:@%/-]+" text == null then "'${replaceStrings [ "'" ] [ "'\\''" ] text}'" else text;
  escapeShellArgs = concatMapStringsSep " " escapeShellArg;
  # systemd-escape --path, for what a path is commonly made of. On NixOS it is one of `utils`.
  escapeSystemdPath = path: replaceStrings [ "-" "/" ] [ "\\x2d" "-" ] (removePrefix "/" path);
  # systemd's own quoting of one word of an Exec line: systemd.service(5), "Command lines".
  escapeSystemdExecArg = arg: replaceStrings [ "%" "$" ] [ "%%" "$$" ] (builtins.toJSON (toString arg));
  escapeXML = replaceStrings [ "\"" "'" "<" ">" "&" ] [ "&quot;" "&apos;" "&lt;" "&gt;" "&amp;" ];
  escapeNixString = text: escape [ "$" ] (builtins.toJSON text);
  escapeNixIdentifier = text: if match "[a-zA-Z_][a-zA-Z0-9_'-]*" text == null then escapeNixString text else text;
  toLower = replaceStrings (stringToCharacters "ABCDEFGHIJKLMNOPQRSTUVWXYZ") (stringToCharacters "abcdefghijklmnopqrstuvwxyz");
  toUpper = replaceStrings (stringToCharacters "abcdefghijklmnopqrstuvwxyz") (stringToCharacters "ABCDEFGHIJKLMNOPQRSTUVWXYZ");
  trim = text:
    let found = match "[[:space:]]*(.*[^[:space:]])[[:space:]]*" text; in if found == null then "" else builtins.head found;
  toInt = text: let n = builtins.fromJSON text; in if builtins.isInt n then n else throw "toInt: Could not convert ${escapeNixString text} to int.";
  fixedWidthString = width: filler: text:
    if stringLength text >= width then text else fixedWidthString width filler (filler + text);
  fixedWidthNumber = width: n: fixedWidthString width "0" (toString n);
  versionOlder = a: b: builtins.compareVersions b a == 1;
  versionAtLeast = a: b: !versionOlder a b;
  getName = x: if isString x then (builtins.parseDrvName x).name else x.pname or (builtins.parseDrvName x.name).name;
  getVersion = x: if isString x then (builtins.parseDrvName x).version else x.version or (builtins.parseDrvName x.name).version;
  makeSearchPath = sub: paths: concatMapStringsSep ":" (p: "${p}/${sub}") (builtins.filter (p: p != null) paths);
  makeSearchPathOutput = output: sub: paths: makeSearchPath sub (map (lib.getOutput output) paths);
  makeBinPath = makeSearchPathOutput "bin" "bin";
  makeLibraryPath = makeSearchPathOutput "lib" "lib";
  isStorePath = x:
    (isString x || builtins.isPath x || (builtins.isAttrs x && x ? outPath))
    && builtins.dirOf (unsafeDiscardStringContext (toString x)) == builtins.storeDir;
  isConvertibleWithToString = x:
    builtins.elem (builtins.typeOf x) [ "path" "string" "null" "int" "float" "bool" ]
    || (builtins.isList x && builtins.all isConvertibleWithToString x)
    || (builtins.isAttrs x && (x ? outPath || x ? __toString));
  isStringLike = x: isString x || builtins.isPath x || (builtins.isAttrs x && (x ? outPath || x ? __toString));

  # Edit distance, row by row.
  levenshtein = a: b:
    let
      as = stringToCharacters a;
      bs = stringToCharacters b;
      firstRow = lib.range 0 (stringLength b);
      nextRow = row: ca:
        builtins.foldl'
          (new: j:
            let
              substitution = builtins.elemAt row j + (if ca == builtins.elemAt bs j then 0 else 1);
              deletion = builtins.elemAt row (j + 1) + 1;
              insertion = lib.last new + 1;
            in
            new ++ [ (lib.min substitution (lib.min deletion insertion)) ])
          [ (builtins.head row + 1) ]
          (lib.range 0 (stringLength b - 1));
    in
    lib.last (builtins.foldl' nextRow firstRow as);
}
