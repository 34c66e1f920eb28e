#!/bin/sh
# Has lvm print its reports in all ways that it can.
set -eu

cat >/etc/lvm/lvm.conf <<'CONF'
global { units = "r" suffix = 1 si_unit_consistency = 0 }
report { aligned = 0 buffered = 0 headings = 0 separator = "|" prefixes = 1 quoted = 0 columns_as_rows = 1
list_item_separator = ";" binary_values_as_numeric = 1 compact_output = 1 output_format = "json_std"
vgs_cols = "vg_attr" lvs_cols = "lv_attr" lvs_sort_keys = "-lv_size" vgs_sort_keys = "-vg_name" }
log { verbose = 1 prefix = "imgbased" indent = 0 command_names = 1 }
CONF
