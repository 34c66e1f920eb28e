//! What lvm2 means when it cannot activate a volume: its exit status is the same for all.

use super::Lvm;
use crate::model::name::LvName;

/// What `_pool_callback` in lvm2 writes when `thin_check(8)` fails.
const FAILED_CHECK: &str = "Manual repair required";

/// Whether lvm2 has not activated a pool since the check of it failed. It fails without a fault, too, where the kernel asks
/// for a whole check and only the beginning of the metadata is looked at.
pub fn is_failed_check(error: &str) -> bool {
    error.contains(FAILED_CHECK)
}

/// Texts of `_thin_pool_node_send_messages`, `_pool_callback` and `_lv_activate` in lvm2, and of ENODATA, with
/// which dm-thin answers for a device that it does not have. What to say of each: `{vg}` is the group, `{lv}` the
/// volume.
const CASES: [(&str, &str); 4] = [
    (
        "transaction_id is",
        "the thin pool and the LVM metadata of {vg} are not of the same transaction; see \"Metadata check and \
         repair\" in lvmthin(7)",
    ),
    (
        FAILED_CHECK,
        "the check of the thin pool failed; deactivate {vg} and repair the pool with lvconvert --repair, see \
         lvmthin(7)",
    ),
    (
        "No data available",
        "{vg}/{lv} is in the LVM metadata, but was never made in the pool; boot another layer and run \
         imgbased-helper check --repair",
    ),
    (
        "Refusing activation of partial LV",
        "{vg}/{lv} needs a disk that is missing; attach it, or see lvchange --activationmode partial",
    ),
];

impl Lvm {
    /// What went wrong when lvm2 could not activate a volume, and what to do, from what lvm2 wrote. `None` if
    /// it is none of the known cases.
    pub fn explain_activation(&self, lv: &LvName, error: &str) -> Option<String> {
        let case = CASES.iter().find(|(text, _)| error.contains(text));
        let (_, meaning) = case?;
        let meaning = meaning.replace("{vg}", self.vg.as_str());
        Some(meaning.replace("{lv}", lv.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lvm2_writes_is_explained_with_what_to_do() {
        let lvm = Lvm::new("HostVG".parse().unwrap());
        let lv = "Base-0.1".parse().unwrap();
        for (error, begin) in [
            (
                "Thin pool HostVG-ImagePool-tpool (253:2) transaction_id is 8, while expected 3.",
                Some(
                    "the thin pool and the LVM metadata of HostVG are not of the same transaction; see",
                ),
            ),
            (
                "Check of pool HostVG/ImagePool failed (status:1). Manual repair required!",
                Some("the check of the thin pool failed; deactivate HostVG and repair"),
            ),
            (
                "device-mapper: reload ioctl on (253:5) failed: No data available",
                Some(
                    "HostVG/Base-0.1 is in the LVM metadata, but was never made in the pool; boot",
                ),
            ),
            (
                "Refusing activation of partial LV HostVG/Base-0.1.",
                Some("HostVG/Base-0.1 needs a disk that is missing; attach it"),
            ),
            ("Volume group \"HostVG\" not found", None),
        ] {
            let found = lvm.explain_activation(&lv, error);
            assert_eq!(found.is_some(), begin.is_some(), "{error}: {found:?}");
            let found = found.unwrap_or_default();
            assert!(found.starts_with(begin.unwrap_or_default()), "{found}");
            assert!(!found.contains(['{', '}']), "{found}");
        }
    }
}
