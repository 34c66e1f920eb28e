//! Which kernel of a layer boots, and which has to be tried before it may: pure.

use std::cmp::Ordering;

use rpm_version::rpm_evr_compare;

use super::entry::{BootSpec, Entry};

/// The kernels of a layer in the order of its entries. The first one boots where the layer does.
#[derive(Debug, PartialEq, Eq)]
pub struct Arrangement {
    pub kernels: Vec<Placed>,
    /// The place of a newer kernel, or a newer initramfs, that was not tried until now: it is tried before it
    /// is the first.
    pub new: Option<usize>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Placed {
    pub spec: BootSpec,
    /// Whether it has come up in this layer, or nothing is known of any kernel.
    pub is_proven: bool,
}

impl Arrangement {
    /// All kernels alike, in the order in which they were found.
    pub fn plain(found: Vec<BootSpec>) -> Self {
        let placed = |spec| Placed {
            spec,
            is_proven: true,
        };
        Self {
            kernels: found.into_iter().map(placed).collect(),
            new: None,
        }
    }
}

/// What is told of the kernels of a layer beside its entries.
pub struct Told<'a> {
    /// Whether a new one can be tried.
    pub can_try: bool,
    /// Whether it runs now.
    pub runs: &'a dyn Fn(&BootSpec) -> bool,
    /// Whether it was tried in vain.
    pub has_failed: &'a dyn Fn(&BootSpec) -> bool,
    /// Whether one that has an entry on trial was tried, or is.
    pub was_tried: &'a dyn Fn(&BootSpec) -> bool,
}

impl Told<'static> {
    /// Of a layer that is new: all its kernels are tried with it.
    pub fn new_layer(can_try: bool) -> Self {
        Self {
            can_try,
            runs: &|_| false,
            has_failed: &|_| false,
            was_tried: &|_| true,
        }
    }
}

/// Arranges the kernels that were found in a layer, the newest first. `before` are its entries until now, the
/// one that boots first: those that are not on trial have come up. `is_whole` tells whether the boot
/// partition has the files of a kernel.
///
/// The first is the newest that has come up. Where its initramfs was made anew, or all that were found are new,
/// it is the one that was the first, from its copies: the package manager may remove the kernel that runs, but
/// not the last one that is known to come up. Without `can_try` a new kernel is the first at once; one that was tried in vain never
/// is.
pub fn arrange(
    found: Vec<BootSpec>,
    before: &[Entry],
    told: &Told,
    is_whole: impl Fn(&BootSpec) -> bool,
) -> Arrangement {
    let has = |is_trial: bool, spec: &BootSpec| {
        let mut entries = before.iter().filter(|entry| entry.is_trial() == is_trial);
        entries.any(|entry| entry.boots_kernel(spec))
    };
    let Some(until_now) = before.iter().find(|entry| !entry.is_trial()) else {
        return without_proven(found, before, told);
    };
    let place = |spec: BootSpec| Placed {
        is_proven: has(false, &spec) || !told.can_try && !has(true, &spec),
        spec,
    };
    let mut kernels: Vec<Placed> = found.into_iter().map(place).collect();
    let proven = kernels.iter().position(|kernel| kernel.is_proven);
    let kept = Placed {
        spec: until_now.spec(),
        is_proven: true,
    };
    let is_kept = match proven {
        // Its initramfs may have been made anew.
        Some(at) => {
            let mut before = kernels[..at].iter();
            before.any(|newer| newer.spec.version == kept.spec.version)
        }
        None => true,
    } && is_whole(&kept.spec);
    let first = match proven {
        _ if is_kept => kept,
        Some(at) => kernels.remove(at),
        None => {
            let found = kernels.into_iter().map(|kernel| kernel.spec).collect();
            return without_proven(found, before, told);
        }
    };
    let is_new = |newest: &Placed| {
        let spec = &newest.spec;
        let is_known = newest.is_proven || has(true, spec) && (told.was_tried)(spec);
        !is_known && rpm_evr_compare(&spec.version, &first.spec.version) != Ordering::Less
    };
    let new = kernels.first().filter(|newest| is_new(newest)).map(|_| 1);
    kernels.insert(0, first);
    Arrangement { kernels, new }
}

/// Arranges kernels of which none is known to come up by its entry. The one that runs has come up. One with an entry on
/// trial was tried in vain, or is to be, and one that has failed was: neither is the first while there is another, the
/// entry of which was lost.
fn without_proven(mut found: Vec<BootSpec>, before: &[Entry], told: &Told) -> Arrangement {
    let has_entry = |spec: &BootSpec| before.iter().any(|entry| entry.version == spec.version);
    let behind = |spec: BootSpec| Placed {
        spec,
        is_proven: false,
    };
    if let Some(at) = found.iter().position(told.runs) {
        let first = found.remove(at);
        let is_new = |newest: &BootSpec| {
            told.can_try
                && !has_entry(newest)
                && !(told.has_failed)(newest)
                && rpm_evr_compare(&newest.version, &first.version) == Ordering::Greater
        };
        let new = found.first().is_some_and(is_new).then_some(1);
        let mut arrangement = Arrangement::plain(vec![first]);
        arrangement.kernels.extend(found.into_iter().map(behind));
        return Arrangement { new, ..arrangement };
    }
    let is_last = |spec: &BootSpec| has_entry(spec) || (told.has_failed)(spec);
    let (last, others): (Vec<_>, Vec<_>) = found.into_iter().partition(is_last);
    if others.is_empty() {
        return Arrangement::plain(last);
    }
    let mut arrangement = Arrangement::plain(others);
    arrangement.kernels.extend(last.into_iter().map(behind));
    arrangement
}

/// The entries that a layer is made by, with the initramfs images that were made anew for it. The layer as a whole is
/// tried with them: the entries that it gets name no others.
pub fn made_anew(mut before: Vec<Entry>, found: &[BootSpec]) -> Vec<Entry> {
    for entry in &mut before {
        let mut same = found.iter();
        let same = same.find(|spec| spec.version == entry.version && spec.linux == entry.linux);
        if let Some(spec) = same {
            entry.initrd.clone_from(&spec.initrd);
        }
    }
    before
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::entry::Extra;

    /// `6.1` with the initramfs `a`, as `6.1a`.
    fn spec(text: &str) -> BootSpec {
        let version = text.trim_end_matches(char::is_alphabetic);
        BootSpec {
            version: version.into(),
            linux: format!("/imgbased/vmlinuz-{version}"),
            initrd: format!("/imgbased/initrd-{text}"),
            options: "quiet".into(),
            extra: Extra::default(),
            system: "Debian".into(),
        }
    }

    /// The entries of a layer; those that end in `?` are on trial.
    fn entries(kernels: &str) -> Vec<Entry> {
        let (vg, name) = ("HostVG".parse().unwrap(), "Base-0.1".parse().unwrap());
        let entry = |text: &str| {
            let entry = Entry::new(&vg, &name, false, &spec(text.trim_end_matches('?'))).unwrap();
            if text.ends_with('?') {
                entry.on_trial()
            } else {
                entry
            }
        };
        kernels.split_whitespace().map(entry).collect()
    }

    #[test]
    fn a_kernel_boots_by_default_when_it_has_come_up() {
        let told = |was_tried| Told {
            was_tried: if was_tried { &|_| true } else { &|_| false },
            ..Told::new_layer(true)
        };
        // What was found, the entries until now, what they are then; `+` is to be tried.
        for (found, before, expected) in [
            // As it was.
            ("6.1", "6.1", "6.1"),
            ("6.2 6.1", "6.2 6.1", "6.2 6.1"),
            // Nothing has come up yet, or nothing is known: the newest.
            ("6.2 6.1", "", "6.2 6.1"),
            ("6.2 6.1", "6.1?", "6.2 6.1?"),
            // A kernel or an initramfs has come.
            ("6.2 6.1", "6.1", "6.1 6.2?+"),
            ("6.1b", "6.1a", "6.1a 6.1b?+"),
            ("6.2 6.1b", "6.1a", "6.1a 6.2?+ 6.1b?"),
            ("6.2b 6.1", "6.2a 6.1", "6.2a 6.2b?+ 6.1"),
            ("6.2 6.1b", "6.2 6.1a", "6.2 6.1b?"),
            // It is tried already, or was in vain.
            ("6.2 6.1", "6.1 6.2?", "6.1 6.2?"),
            // Another one has come since, or another initramfs of it.
            ("6.3 6.2 6.1", "6.1 6.2?", "6.1 6.3?+ 6.2?"),
            ("6.2b 6.1", "6.1 6.2a?", "6.1 6.2b?+"),
            // An older one is not tried by itself.
            ("6.2 6.1", "6.2", "6.2 6.1?"),
            ("6.1", "6.2", "6.2 6.1?"),
            // The last one that has come up is gone from the layer.
            ("6.2", "6.1 6.2?", "6.1 6.2?"),
            ("6.2", "6.1", "6.1 6.2?+"),
            // It is not the last one.
            ("6.3 6.1", "6.2 6.1 6.3?", "6.1 6.3?"),
            // The entry of the one that has come up was lost.
            ("6.2 6.1", "6.2?", "6.1 6.2?"),
            ("6.2 6.1", "6.2? 6.1?", "6.2 6.1"),
            ("6.2 6.1b", "6.2? 6.1a?", "6.2 6.1b"),
            // A kernel that has come up goes on without one that is newer.
            ("6.3 6.2 6.1", "6.2 6.3? 6.1", "6.2 6.3? 6.1"),
        ] {
            let found: Vec<BootSpec> = found.split_whitespace().map(spec).collect();
            let got = arrange(found.clone(), &entries(before), &told(true), |_| true);
            let shown: Vec<String> = got
                .kernels
                .iter()
                .enumerate()
                .map(|(at, kernel)| {
                    let initrd = kernel.spec.initrd.rsplit('-').next().unwrap_or_default();
                    let trial = if kernel.is_proven { "" } else { "?" };
                    let new = if got.new == Some(at) { "+" } else { "" };
                    format!("{initrd}{trial}{new}")
                })
                .collect();
            assert_eq!(shown.join(" "), expected, "{before}");
            // The same once more starts no trial again, unless the power was cut before it was started.
            for was_tried in [true, false] {
                let entries = entries(&expected.replace('+', ""));
                let after = arrange(found.clone(), &entries, &told(was_tried), |_| true);
                let is_new = after.new.is_some() && expected.contains('+');
                assert_eq!(is_new, !was_tried && expected.contains('+'), "{before}");
            }
        }
    }

    /// As after the entries were lost.
    #[test]
    fn without_entries_what_runs_is_the_first_and_what_has_failed_is_not() {
        for (found, before, runs, failed, can_try, expected) in [
            ("6.2 6.1", "", "", "", true, "6.2 6.1"),
            ("6.2 6.1", "", "", "6.2", true, "6.1 6.2?"),
            ("6.2 6.1", "", "6.1", "", true, "6.1 6.2?+"),
            ("6.2 6.1", "", "6.1", "", false, "6.1 6.2?"),
            ("6.2 6.1", "", "6.1", "6.2", true, "6.1 6.2?"),
            ("6.2 6.1", "6.2?", "6.1", "", true, "6.1 6.2?"),
            ("6.2 6.1", "", "6.2", "", true, "6.2 6.1?"),
            ("6.2 6.1", "", "", "6.2 6.1", true, "6.2 6.1"),
        ] {
            let found: Vec<BootSpec> = found.split_whitespace().map(spec).collect();
            let told = Told {
                runs: &|spec| spec.version == runs,
                has_failed: &|spec| failed.split(' ').any(|version| version == spec.version),
                ..Told::new_layer(can_try)
            };
            let got = arrange(found, &entries(before), &told, |_| true);
            let shown = got.kernels.iter().enumerate().map(|(at, kernel)| {
                let trial = if kernel.is_proven { "" } else { "?" };
                let new = if got.new == Some(at) { "+" } else { "" };
                format!("{}{trial}{new}", kernel.spec.version)
            });
            let shown = shown.collect::<Vec<_>>().join(" ");
            assert_eq!(shown, expected, "{before} {runs} {failed}");
        }
    }

    #[test]
    fn a_new_layer_boots_the_initramfs_that_was_made_for_it() {
        for (found, before, expected) in [
            ("6.1b", "6.1a", "6.1b"),
            ("6.2b 6.1b", "6.2a 6.1a", "6.2b 6.1b"),
            // A kernel that was tried in vain stays behind.
            ("6.2b 6.1b", "6.1a 6.2a?", "6.1b 6.2b?"),
        ] {
            let found: Vec<BootSpec> = found.split_whitespace().map(spec).collect();
            let before = made_anew(entries(before), &found);
            let got = arrange(found, &before, &Told::new_layer(true), |_| true);
            let shown = got.kernels.iter().map(|kernel| {
                let initrd = kernel.spec.initrd.rsplit('-').next().unwrap();
                format!("{initrd}{}", if kernel.is_proven { "" } else { "?" })
            });
            assert_eq!(shown.collect::<Vec<_>>().join(" "), expected);
        }
    }

    #[test]
    fn a_new_kernel_is_the_first_where_it_cannot_be_tried_or_no_other_is_whole() {
        let first = |found: &str, before: &str, can_try: bool, is_whole: bool| {
            let found: Vec<BootSpec> = found.split_whitespace().map(spec).collect();
            let told = Told::new_layer(can_try);
            let got = arrange(found, &entries(before), &told, |_| is_whole);
            assert_eq!(got.new, None);
            got.kernels[0].spec.initrd.clone()
        };
        assert_eq!(first("6.2 6.1", "6.1", false, true), "/imgbased/initrd-6.2");
        assert_eq!(first("6.1b", "6.1a", false, true), "/imgbased/initrd-6.1b");
        // Not the one that was tried in vain.
        assert_eq!(
            first("6.2 6.1", "6.1 6.2?", false, true),
            "/imgbased/initrd-6.1"
        );
        assert_eq!(
            first("6.2", "6.1 6.2?", true, false),
            "/imgbased/initrd-6.2"
        );
    }
}
