# Functions on attribute sets.
{ lib }:
let
  inherit (builtins) isAttrs attrNames listToAttrs;
in
rec {
  inherit (builtins) attrNames attrValues mapAttrs listToAttrs hasAttr getAttr isAttrs removeAttrs intersectAttrs catAttrs zipAttrsWith;

  nameValuePair = name: value: { inherit name value; };
  attrByPath = path: default: set:
    if path == [ ] then set
    else if isAttrs set && set ? ${builtins.head path} then attrByPath (builtins.tail path) default set.${builtins.head path}
    else default;
  hasAttrByPath = path: set:
    path == [ ]
    || (isAttrs set && set ? ${builtins.head path} && hasAttrByPath (builtins.tail path) set.${builtins.head path});
  getAttrFromPath = path: attrByPath path (throw "cannot find attribute `${lib.concatStringsSep "." path}'");
  setAttrByPath = path: value: lib.foldr (name: inner: { ${name} = inner; }) value path;
  attrVals = names: set: map (name: set.${name}) names;
  getAttrs = names: set: lib.genAttrs names (name: set.${name});
  genAttrs = names: f: listToAttrs (map (name: nameValuePair name (f name)) names);
  filterAttrs = predicate: set: removeAttrs set (builtins.filter (name: !predicate name set.${name}) (attrNames set));
  mapAttrs' = f: set: listToAttrs (map (name: f name set.${name}) (attrNames set));
  mapAttrsToList = f: set: map (name: f name set.${name}) (attrNames set);
  attrsToList = mapAttrsToList nameValuePair;
  concatMapAttrs = f: set: mergeAttrsList (mapAttrsToList f set);
  mergeAttrsList = builtins.foldl' (a: b: a // b) { };
  foldlAttrs = f: start: set: builtins.foldl' (acc: name: f acc name set.${name}) start (attrNames set);
  optionalAttrs = condition: set: if condition then set else { };
  zipAttrs = zipAttrsWith (_: values: values);
  foldAttrs = op: start: sets: mapAttrs (_: values: lib.foldr op start values) (zipAttrs sets);
  mapAttrsRecursive = mapAttrsRecursiveCond (_: true);
  mapAttrsRecursiveCond = condition: f:
    let go = path: mapAttrs (name: v: if isAttrs v && condition v then go (path ++ [ name ]) v else f (path ++ [ name ]) v);
    in go [ ];
  recursiveUpdate = recursiveUpdateUntil (_: a: b: !(isAttrs a && isAttrs b));
  recursiveUpdateUntil = stop: left: right:
    let
      go = path: zipAttrsWith (name: values:
        let here = path ++ [ name ]; in
        if builtins.length values == 1 || stop here (lib.last values) (builtins.head values)
        then builtins.head values
        else go here values);
    in
    go [ ] [ right left ];
  collect = predicate: set:
    if predicate set then [ set ] else if isAttrs set then lib.concatMap (collect predicate) (builtins.attrValues set) else [ ];
  isDerivation = x: x.type or null == "derivation";
  recurseIntoAttrs = set: set // { recurseForDerivations = true; };
  getOutput = output: package: package.${output} or package.out or package;
  getBin = getOutput "bin";
  getLib = getOutput "lib";
  getDev = getOutput "dev";
  getMan = getOutput "man";
  getExe = package: getExe' package (package.meta.mainProgram or (lib.getName package));
  getExe' = package: program: "${getBin package}/bin/${program}";
  toDerivation = path: { type = "derivation"; name = builtins.baseNameOf path; outPath = builtins.storePath path; };
}
