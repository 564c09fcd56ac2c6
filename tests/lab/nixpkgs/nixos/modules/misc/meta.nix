# meta and documentation: accepted, as ordinary modules set them; they build nothing here.
{ lib, ... }:
{
  options.meta = lib.mkOption { type = lib.types.attrsOf lib.types.unspecified; default = { }; internal = true; };
  options.documentation = lib.mkOption { type = lib.types.attrs; default = { }; };
  options.time.timeZone = lib.mkOption { type = lib.types.nullOr lib.types.str; default = null; };
  options.i18n.defaultLocale = lib.mkOption { type = lib.types.str; default = "C.UTF-8"; };
}
