//! Keys of the kernel command line that boot entries have and the initramfs reads.

/// The layer or base to boot. Without this key the initramfs boots an ordinary root.
pub const LAYER: &str = "imgbased.layer";
/// The name of the volume group that the layer is in.
pub const VG: &str = "imgbased.vg";
/// The UUID of that group. With this key no other group counts, whatever its name.
pub const VGID: &str = "imgbased.vgid";
