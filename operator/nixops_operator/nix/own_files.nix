# How a configuration's own files are read: as Nix reads any file, but `<nixpkgs>` is the given one in each of them.
#
# { nixpkgs :: path,  own :: [ store path of a tree of them ],  system :: string }  →  nixpkgs' lib, which reads them so
#
# In pure evaluation Nix looks nothing up, and no setting changes that. But `<x>` is a call of `__findFile`, which is
# bound where a file is parsed, as `import` is. So own files are parsed with other ones in scope
# (builtins.scopedImport), and what they import in turn. The files in a module's `imports` are read by nixpkgs' lib:
# hence another `import` there, too. Files that pkgs.callPackage reads are read by Nix' own; they are given their pkgs.
{
  nixpkgs,
  own,
  system,
}:
let
  root = toString nixpkgs;
  isIn = folder: file: builtins.substring 0 (builtins.stringLength folder + 1) (toString file) == "${folder}/";

  # A source may hold its nixpkgs: thousands of files, which Nix' own import parses once, and this one each time.
  isOwn = file: builtins.any (tree: isIn tree file) own && !isIn root file;

  importAny =
    file:
    if toString file == root || toString file == "${root}/default.nix" then
      nixpkgsForSystem
    else if isOwn file then
      builtins.scopedImport scope file
    else
      import file;

  # Told nothing, nixpkgs takes builtins.currentSystem, which pure evaluation does not have.
  nixpkgsForSystem = given: import nixpkgs ((if given ? localSystem then { } else { inherit system; }) // given);

  scope = {
    import = importAny;
    builtins = builtins // {
      import = importAny;
      currentSystem = system;
    };
    __findFile =
      searchPath: name:
      if name == "nixpkgs" || isIn "nixpkgs" name then
        nixpkgs + builtins.substring (builtins.stringLength "nixpkgs") (builtins.stringLength name) name
      else if isIn "nix" name then
        builtins.findFile searchPath name
      else
        throw "cannot look up '<${name}>'";
  };

  importForLib =
    file:
    if toString file == "${root}/lib" || isIn "${root}/lib" file then
      builtins.scopedImport { import = importForLib; } file
    else
      importAny file;
in
importForLib (nixpkgs + "/lib")
