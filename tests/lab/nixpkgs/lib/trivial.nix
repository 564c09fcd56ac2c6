# Functions on single values, versions, warnings.
{ lib }:
rec {
  inherit (builtins)
    isString isInt isFloat isBool isList isAttrs isPath functionArgs seq deepSeq toJSON fromJSON
    readFile readDir pathExists genericClosure lessThan add sub;

  release = builtins.readFile ../.version;
  versionSuffix = ".lab";
  # Whether names and messages are those of nixpkgs in the summer of 2020, just before 20.09.
  isOf2020 = builtins.compareVersions release "20.10" < 0;
  version = release + versionSuffix;
  codeName = "Miniature";
  oldestSupportedRelease = 2505;
  inNixShell = false;

  id = x: x;
  const = x: _: x;
  flip = f: a: b: f b a;
  pipe = builtins.foldl' (x: f: f x);
  min = a: b: if a < b then a else b;
  max = a: b: if a > b then a else b;
  mod = a: b: a - b * (a / b);
  boolToString = b: if b then "true" else "false";
  importJSON = path: fromJSON (readFile path);
  mapNullable = f: v: if v == null then null else f v;
  defaultTo = fallback: v: if v == null then fallback else v;

  # A functor counts as a function, as in nixpkgs.
  isFunction = f: builtins.isFunction f || (isAttrs f && f ? __functor && builtins.isFunction (f.__functor f));
  functionArgsOf = f: if isAttrs f then f.__functionArgs or (functionArgs (f.__functor f)) else functionArgs f;
  setFunctionArgs = f: args: { __functor = _: f; __functionArgs = args; };

  trace = builtins.trace;
  # The wording of nixpkgs' lib.warn on a Nix without builtins.warn.
  warn = message: value: builtins.trace "evaluation warning: ${message}" value;
  warnIf = condition: message: if condition then warn message else id;
  throwIf = condition: message: if condition then throw message else id;
  throwIfNot = condition: throwIf (!condition);
  showWarnings = warnings: value: builtins.foldl' (v: w: warn w v) value warnings;
  assertMsg = condition: message: condition || throw message;
}
