# Functions on lists.
{ lib }:
rec {
  inherit (builtins) map filter foldl' head tail length elem elemAt concatLists concatMap any all sort partition genList groupBy;

  foldr = op: start: list:
    let
      count = length list;
      go = i: if i == count then start else op (elemAt list i) (go (i + 1));
    in
    go 0;
  fold = foldr;
  foldl = foldl';
  singleton = x: [ x ];
  optional = condition: x: if condition then [ x ] else [ ];
  optionals = condition: list: if condition then list else [ ];
  toList = x: if builtins.isList x then x else [ x ];
  range = first: last: if first > last then [ ] else genList (i: first + i) (last - first + 1);
  imap0 = f: list: genList (i: f i (elemAt list i)) (length list);
  imap1 = f: list: genList (i: f (i + 1) (elemAt list i)) (length list);
  last = list: elemAt list (length list - 1);
  init = list: genList (elemAt list) (length list - 1);
  sublist = start: count: list:
    genList (i: elemAt list (start + i)) (lib.max 0 (lib.min count (length list - start)));
  take = count: sublist 0 count;
  drop = count: list: sublist count (length list) list;
  reverseList = list: let n = length list; in genList (i: elemAt list (n - 1 - i)) n;
  flatten = x: if builtins.isList x then concatMap flatten x else [ x ];
  remove = x: filter (y: y != x);
  count = predicate: list: length (filter predicate list);
  findFirst = predicate: default: list:
    let found = filter predicate list; in if found == [ ] then default else head found;
  unique = foldl' (seen: x: if elem x seen then seen else seen ++ [ x ]) [ ];
  subtractLists = gone: filter (x: !(elem x gone));
  intersectLists = kept: filter (x: elem x kept);
  naturalSort = sort (a: b: a < b);
  sortOn = f: list: map (p: p.value) (sort (a: b: a.rank < b.rank) (map (value: { inherit value; rank = f value; }) list));
  zipListsWith = f: a: b: genList (i: f (elemAt a i) (elemAt b i)) (lib.min (length a) (length b));
  crossLists = f: foldl' (fs: args: concatMap (g: map g args) fs) [ f ];
}
