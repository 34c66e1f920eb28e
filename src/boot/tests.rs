//! Stories of a boot partition in a directory.

use std::cell::RefCell;
use std::fs;
use std::time::{Duration, SystemTime};

use anyhow::bail;
use tempfile::TempDir;

use super::arrange::Told;
use super::grubenv::GrubEnv;
use super::*;
use crate::model::trial::{State, Trial};
use crate::sys::cmd::Cmd;
use crate::sys::transaction::{change, cut_before};

const KERNEL: &str = "boot/vmlinuz-6.1-amd64";
const INITRD: &str = "boot/initrd.img-6.1-amd64";

/// A directory that stands for a mounted boot partition.
fn partition() -> (TempDir, BootPartition) {
    let dir = tempfile::tempdir().unwrap();
    let (root, vg) = (dir.path().join("root"), "HostVG".parse().unwrap());
    let boot = BootPartition::in_dir(dir.path(), &root, &vg).unwrap();
    (dir, boot)
}

fn system() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("boot")).unwrap();
    fs::write(dir.path().join(KERNEL), "kernel").unwrap();
    fs::write(dir.path().join(INITRD), "initramfs").unwrap();
    dir
}

fn publish(boot: &BootPartition, system: &TempDir) -> BootSpec {
    let specs = change(|tx| look_for_kernels(boot, tx, system, &known(&[])));
    specs.unwrap().into_iter().next().unwrap()
}

fn known(entries: &[Entry]) -> Known<'_> {
    Known {
        entries,
        options: "quiet",
        added: None,
        removed: None,
        is_running: false,
        is_made: false,
    }
}

fn look_for_kernels(
    boot: &BootPartition,
    tx: &mut Transaction,
    system: &TempDir,
    known: &Known,
) -> Result<Vec<BootSpec>> {
    let kernels = boot.kernels_of(tx, system.path(), known, &mut |_, _, _| Ok(None))?;
    boot.store_kernels(tx, kernels)
}

fn add(boot: &BootPartition, name: &str, spec: &BootSpec) -> Result<Entry> {
    let is_base = !name.contains('.');
    let name: LvName = name.parse()?;
    let entry = Entry::new(&boot.vg, &name, is_base, spec)?;
    change(|tx| boot.write_entries(tx, &name, std::slice::from_ref(&entry)))?;
    Ok(entry)
}

fn files_below(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for file in fs::read_dir(next).unwrap() {
            let path = file.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                found.push(path.strip_prefix(dir).unwrap().display().to_string());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn kernels_are_stored_once_by_content() {
    let (dir, boot) = partition();
    let system = system();
    let spec = publish(&boot, &system);
    assert_eq!(spec.options, "quiet");
    assert_eq!(publish(&boot, &system), spec);
    assert_eq!(files_below(dir.path()).len(), 2);
    let stored = |path: &str| dir.path().join(path.trim_start_matches('/'));
    assert_eq!(fs::read(stored(&spec.linux)).unwrap(), b"kernel");

    // Rebuilt in the image: another file, the old one stays for the layers that use it.
    fs::write(system.path().join(INITRD), "other initramfs").unwrap();
    let rebuilt = publish(&boot, &system);
    assert_eq!(rebuilt.linux, spec.linux);
    assert_ne!(rebuilt.initrd, spec.initrd);
    assert_eq!(files_below(dir.path()).len(), 3);

    // Cut off by a crash of the filesystem: written again.
    fs::write(stored(&spec.linux), "ker").unwrap();
    publish(&boot, &system);
    assert_eq!(fs::read(stored(&spec.linux)).unwrap(), b"kernel");
}

#[test]
fn a_layer_that_is_gone_is_remembered_while_something_names_it() {
    let (dir, boot) = partition();
    let remembers = |name: &str| boot.remembers(&name.parse().unwrap()).unwrap();
    fs::create_dir_all(dir.path().join("grub")).unwrap();
    for (variable, name) in [
        ("saved_entry", "imgbased-Base-0.2"),
        ("next_entry", "imgbased-Base-0.3"),
        ("imgbased_trial", "imgbased-Base-0.4@6.1"),
    ] {
        let mut env = GrubEnv::default();
        env.set(variable, name);
        fs::write(dir.path().join("grub/grubenv"), env.render().unwrap()).unwrap();
        let known: Vec<u32> = (1..6)
            .filter(|n| remembers(&format!("Base-0.{n}")))
            .collect();
        let wanted = name.split(['.', '@']).nth(1).unwrap();
        assert_eq!(known, [wanted.parse::<u32>().unwrap()], "{variable}");
    }
    fs::remove_file(dir.path().join("grub/grubenv")).unwrap();
    assert!(!remembers("Base-0.5"));
    add(&boot, "Base-0.5", &publish(&boot, &system())).unwrap();
    assert!(remembers("Base-0.5"));
}

#[test]
fn an_entry_that_others_have_rewritten_is_written_again() {
    let (dir, boot) = partition();
    let spec = publish(&boot, &system());
    let entry = add(&boot, "Base-0.1", &spec).unwrap();
    let name: LvName = "Base-0.1".parse().unwrap();
    assert!(!boot.is_rewritten(&name).unwrap());
    let path = dir.path().join("loader/entries/imgbased-Base-0.1.conf");
    for options in ["root=/dev/sda1 ro", "a;b imgbased.layer=Base-0.1"] {
        let text = entry.render().replace(&entry.options, options);
        fs::write(&path, text).unwrap();
        assert!(boot.is_rewritten(&name).unwrap(), "{options}");
        assert!(boot.entries_of(&name).unwrap().is_empty());
        add(&boot, "Base-0.1", &spec).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), entry.render());
    }
    fs::write(&path, "title Mine\noptions root=/dev/sda1\n").unwrap();
    assert!(boot.is_rewritten(&name).is_err());
    assert!(add(&boot, "Base-0.1", &spec).is_err());
}

#[test]
fn kernels_with_other_content_are_found() {
    let (dir, boot) = partition();
    let spec = publish(&boot, &system());
    assert!(boot.damaged_kernels().unwrap().is_empty());
    let path = dir.path().join(spec.linux.trim_start_matches('/'));
    fs::write(&path, "kernal").unwrap();
    assert_eq!(boot.damaged_kernels().unwrap(), [path]);
}

#[test]
fn a_lost_entry_is_made_from_the_copies_of_its_kernel() {
    let (dir, boot) = partition();
    let system = with_kernels(&["6.1"]);
    let entries = refresh(&boot, &system, None, None);
    let name: LvName = "Base-0.1".parse().unwrap();
    let before = boot.entries_of(&name).unwrap();
    fs::remove_dir_all(system.path().join("boot")).unwrap();
    fs::remove_file(dir.path().join(ENTRIES).join("imgbased-Base-0.1.conf")).unwrap();
    // As long as it is lost, they are no leftovers.
    assert!(boot.leftovers(true).unwrap().is_empty());
    assert_eq!(boot.leftovers(false).unwrap().len(), 2);
    // What is not whole does not count, nor what is of another version.
    for (file, content) in [("vmlinuz-6.1-0123456789abcdef", "x"), ("vmlinuz-6.1", "x")] {
        fs::write(dir.path().join(KERNELS).join(file), content).unwrap();
    }
    let kernels = change(|tx| look_for_kernels(&boot, tx, &system, &known(&[])));
    let found = Entry::of_kernels(
        &boot.vg,
        &name,
        false,
        &Arrangement::plain(kernels.unwrap()),
    )
    .unwrap();
    assert_eq!(found.len(), entries.len());
    assert_eq!(
        (&found[0].linux, &found[0].initrd),
        (&before[0].linux, &before[0].initrd)
    );
}

#[test]
fn a_default_of_another_system_is_a_default() {
    let (_dir, boot) = partition();
    let entry = add(&boot, "Base-0.1", &publish(&boot, &system())).unwrap();
    for (id, expected) in [
        ("", false),
        ("imgbased-Base-0.1", true),
        ("imgbased-Base-0.9", false),
        ("Advanced options>Debian", true),
    ] {
        change(|tx| boot.set_default(tx, id)).unwrap();
        let entries = std::slice::from_ref(&entry);
        assert_eq!(boot.has_default(entries).unwrap(), expected, "{id}");
    }
}

#[test]
fn the_default_belongs_to_its_layer_also_while_its_entry_is_lost() {
    let (_dir, boot) = partition();
    add(&boot, "Base-0.1", &publish(&boot, &system())).unwrap();
    let names = ["Base-0", "Base-0.1", "Base-0.11"].map(|name| name.parse().unwrap());
    for (id, owner) in [
        ("imgbased-Base-0.1", Some("Base-0.1")),
        ("imgbased-Base-0.11@6.1", Some("Base-0.11")),
        ("imgbased-Base-0.12", None),
        ("Debian", None),
    ] {
        assert_eq!(boot.owner_of(id, &names).as_deref(), owner, "{id}");
    }
}

#[test]
fn a_failed_verb_takes_its_copies_back() {
    let (dir, boot) = partition();
    let failed: Result<()> = change(|tx| {
        look_for_kernels(&boot, tx, &system(), &known(&[]))?;
        bail!("later")
    });
    assert_eq!(failed.unwrap_err().to_string(), "later");
    assert!(files_below(dir.path()).is_empty());
}

/// Has the package of a kernel put its files into a root.
/// A system with these kernels.
fn with_kernels(versions: &[&str]) -> TempDir {
    let system = tempfile::tempdir().unwrap();
    fs::create_dir(system.path().join("boot")).unwrap();
    for version in versions {
        install(&system, version);
    }
    system
}

fn install(system: &TempDir, version: &str) {
    let modules = system.path().join("usr/lib/modules").join(version);
    fs::create_dir_all(modules.join("kernel")).unwrap();
    let boot = system.path().join("boot");
    for name in ["vmlinuz", "initrd.img"] {
        let path = boot.join(format!("{name}-{version}"));
        fs::write(path, format!("{name} {version}")).unwrap();
    }
}

/// Writes the entries of Base-0.1 anew, for a change of one kernel or of all, and returns them as the
/// ends of their ids and their versions.
fn refresh(
    boot: &BootPartition,
    system: &TempDir,
    added: Option<&str>,
    removed: Option<&str>,
) -> Vec<(String, String)> {
    let name: LvName = "Base-0.1".parse().unwrap();
    let entries = boot.entries_of(&name).unwrap();
    let known = Known {
        added,
        removed,
        ..known(&entries)
    };
    let entries = change(|tx| {
        let kernels = look_for_kernels(boot, tx, system, &known)?;
        let entries = Entry::of_kernels(&boot.vg, &name, false, &Arrangement::plain(kernels))?;
        boot.write_entries(tx, &name, &entries)?;
        Ok(entries)
    })
    .unwrap();
    assert_eq!(boot.entries_of(&name).unwrap(), entries);
    assert!(boot.leftovers(false).unwrap().is_empty());
    for entry in &entries {
        assert!(boot.has_kernel(&entry.spec()), "{}", entry.id);
    }
    let short = |id: &str| id.replace("imgbased-Base-0.1", "");
    let entries = entries.into_iter();
    entries.map(|e| (short(&e.id), e.version)).collect()
}

fn expected(entries: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(id, version): &(&str, &str)| ((*id).to_owned(), (*version).to_owned());
    entries.iter().map(owned).collect()
}

#[test]
fn each_kernel_of_a_layer_has_an_entry_and_the_newest_that_of_the_layer() {
    let (dir, boot) = partition();
    let system = with_kernels(&["6.1-9"]);
    assert_eq!(
        refresh(&boot, &system, None, None),
        expected(&[("", "6.1-9")])
    );
    install(&system, "6.1-10");
    assert_eq!(
        refresh(&boot, &system, Some("6.1-10"), None),
        expected(&[("", "6.1-10"), ("@6.1-9", "6.1-9")])
    );
    let menu = fs::read_to_string(dir.path().join("grub/imgbased.cfg")).unwrap();
    let ids: Vec<&str> = menu
        .lines()
        .filter_map(|line| line.split("--id ").nth(1))
        .filter(|id| id.starts_with("'imgbased-"))
        .collect();
    assert_eq!(
        ids,
        ["'imgbased-Base-0.1' {", "'imgbased-Base-0.1@6.1-9' {"]
    );

    // What boots is still there when it goes, and its copies go with it.
    change(|tx| boot.set_default(tx, "imgbased-Base-0.1@6.1-9")).unwrap();
    assert_eq!(
        refresh(&boot, &system, None, Some("6.1-9")),
        expected(&[("", "6.1-10")])
    );
    assert_eq!(
        boot.default_id().unwrap().as_deref(),
        Some("imgbased-Base-0.1")
    );
    assert_eq!(fs::read_dir(dir.path().join(KERNELS)).unwrap().count(), 2);

    // Never the last one.
    fs::remove_dir_all(system.path().join("usr/lib/modules/6.1-9")).unwrap();
    assert_eq!(
        refresh(&boot, &system, None, Some("6.1-10")),
        expected(&[("", "6.1-10")])
    );
}

#[test]
fn a_layer_has_all_its_kernels_whatever_its_name_ends_in() {
    let (_dir, boot) = partition();
    let system = with_kernels(&["6.1", "6.2"]);
    for (name, wanted) in [
        ("Base-0.1", ["imgbased-Base-0.1", "imgbased-Base-0.1@6.1"]),
        // Their ids would look like boot counters.
        (
            "node-1-1+1",
            ["imgbased-node-1-1+1_", "imgbased-node-1-1+1@6.1"],
        ),
        (
            "node-1-1+12",
            ["imgbased-node-1-1+12_", "imgbased-node-1-1+12@6.1"],
        ),
    ] {
        let name: LvName = name.parse().unwrap();
        let written = change(|tx| {
            let kernels = look_for_kernels(&boot, tx, &system, &known(&[]))?;
            let entries = Entry::of_kernels(&boot.vg, &name, false, &Arrangement::plain(kernels))?;
            boot.write_entries(tx, &name, &entries)?;
            Ok(entries)
        });
        let found = boot.entries_of(&name).unwrap();
        assert_eq!(found, written.unwrap());
        let ids: Vec<&str> = found.iter().map(|entry| entry.id.as_str()).collect();
        assert_eq!(ids, wanted);
        // The kernel that runs is found, and no change of one entry loses the other.
        let running = boot.running_entry(&name, "6.1", false).unwrap().unwrap();
        assert_eq!(running.id, wanted[1]);
        change(|tx| boot.change_entry(tx, &name, wanted[0], Entry::on_trial)).unwrap();
        assert_eq!(boot.entries_of(&name).unwrap().len(), 2);
    }
}

#[test]
fn a_kernel_is_on_trial_beside_the_one_that_the_layer_boots() {
    let (dir, boot) = partition();
    let system = with_kernels(&["6.1", "6.2"]);
    refresh(&boot, &system, None, None);
    let name: LvName = "Base-0.1".parse().unwrap();
    let before = boot.entries_of(&name).unwrap();
    let reboots = |to: fn(Entry) -> Entry| {
        change(|tx| boot.change_entry(tx, &name, "imgbased-Base-0.1@6.1", to)).unwrap();
        let menu = fs::read_to_string(dir.path().join("grub/imgbased.cfg")).unwrap();
        menu.matches("imgbased.onfail=reboot").count()
    };
    // In the list, and by itself for GRUB that has listed the entries.
    assert_eq!(reboots(Entry::on_trial), 2);
    assert_eq!(reboots(Entry::confirmed), 0);
    assert_eq!(boot.entries_of(&name).unwrap(), before);
}

#[test]
fn a_kernel_without_files_is_booted_from_its_copies_while_its_modules_are_there() {
    let (_dir, boot) = partition();
    let system = with_kernels(&["6.1", "6.2", "6.3"]);
    refresh(&boot, &system, None, None);
    // Another layer's package manager has removed it from the partition that they share.
    for name in ["vmlinuz-6.1", "initrd.img-6.1", "initrd.img-6.3"] {
        fs::remove_file(system.path().join("boot").join(name)).unwrap();
    }
    fs::remove_dir_all(system.path().join("usr/lib/modules/6.2")).unwrap();
    let left = expected(&[("", "6.3"), ("@6.1", "6.1")]);
    assert_eq!(refresh(&boot, &system, None, None), left);
    // It has no initramfs yet.
    install(&system, "6.4");
    fs::remove_file(system.path().join("boot/initrd.img-6.4")).unwrap();
    assert_eq!(refresh(&boot, &system, Some("6.4"), None), left);
}

#[test]
fn the_entry_of_a_kernel_that_was_not_changed_stays_as_it_is() {
    let (_dir, boot) = partition();
    let system = with_kernels(&["6.1"]);
    refresh(&boot, &system, None, None);
    let initrd = |version: &str| {
        let entries = boot.entries_of(&"Base-0.1".parse().unwrap()).unwrap();
        let entry = entries.into_iter().find(|e| e.version == version).unwrap();
        fs::read_to_string(boot.path_of(&entry.initrd)).unwrap()
    };
    // As another layer has made it, on the partition that they share.
    fs::write(system.path().join("boot/initrd.img-6.1"), "other").unwrap();
    install(&system, "6.2");
    refresh(&boot, &system, Some("6.2"), None);
    assert_eq!(initrd("6.1"), "initrd.img 6.1");
    refresh(&boot, &system, None, None);
    assert_eq!(initrd("6.1"), "other");
}

#[test]
fn files_of_a_kernel_are_found_on_the_partition_and_among_copies() {
    let (dir, boot) = partition();
    let has = |version: &str| boot.has_files_of(version).unwrap();
    for (file, version, expected) in [
        ("vmlinuz-6.2", "6.2", [true, false]),
        ("initramfs-6.2.img", "6.2", [true, true]),
        ("initrd.img-6.3", "6.3", [false, true]),
    ] {
        fs::write(dir.path().join(file), "").unwrap();
        assert_eq!(has(version), expected, "{file}");
    }
    assert_eq!(has("6.1-amd64"), [false, false]);
    publish(&boot, &system());
    assert_eq!(has("6.1-amd64"), [true, true]);
    assert_eq!(has("6.1"), [false, false]);
}

#[test]
fn only_an_initramfs_that_is_new_is_looked_at() {
    let (dir, boot) = partition();
    let system = system();
    let other = dir.path().join("other");
    fs::write(&other, "with the module").unwrap();
    let mut looked_at = Vec::new();
    for _ in 0..2 {
        let mut replace = |_: &mut Transaction, version: &str, initrd: &Path| {
            looked_at.push((version.to_owned(), initrd.to_owned()));
            Ok(Some(other.clone()).filter(|_| looked_at.len() == 1))
        };
        let specs = change(|tx| {
            let kernels = boot.kernels_of(tx, system.path(), &known(&[]), &mut replace)?;
            boot.store_kernels(tx, kernels)
        })
        .unwrap();
        let initrd = fs::read_to_string(boot.path_of(&specs[0].initrd)).unwrap();
        let is_replaced = looked_at.len() == 1;
        assert_eq!(initrd == "with the module", is_replaced, "{initrd}");
    }
    publish(&boot, &system);
    let initrd = system.path().canonicalize().unwrap().join(INITRD);
    assert_eq!(looked_at, vec![("6.1-amd64".to_owned(), initrd); 2]);
}

#[test]
fn a_failure_gives_a_layer_its_entries_and_kernels_back() {
    let (dir, boot) = partition();
    let system = with_kernels(&["6.1"]);
    refresh(&boot, &system, None, None);
    install(&system, "6.2");
    // The menu cannot be written.
    fs::remove_file(dir.path().join("grub/imgbased.cfg")).unwrap();
    fs::create_dir(dir.path().join("grub/imgbased.cfg")).unwrap();
    let name: LvName = "Base-0.1".parse().unwrap();
    let before = boot.entries_of(&name).unwrap();
    let files = files_below(dir.path());
    let failed = change(|tx| {
        let kernels = look_for_kernels(&boot, tx, &system, &known(&before))?;
        let entries = Entry::of_kernels(&boot.vg, &name, false, &Arrangement::plain(kernels))?;
        boot.write_entries(tx, &name, &entries)
    });
    assert!(failed.is_err());
    assert_eq!(boot.entries_of(&name).unwrap(), before);
    assert!(before.iter().all(|e| boot.has_kernel(&e.spec())));
    assert_eq!(files_below(dir.path()), files);
}

#[test]
fn menu_default_and_entries_are_undone_as_a_whole() {
    let (dir, boot) = partition();
    let spec = publish(&boot, &system());
    let first = add(&boot, "Base-0.1", &spec).unwrap();
    change(|tx| boot.set_default(tx, &first.id)).unwrap();
    let state = || {
        let text = |path| fs::read_to_string(dir.path().join(path)).unwrap();
        let menu_and_env = text("grub/imgbased.cfg") + &text("grub/grubenv");
        (files_below(dir.path()), menu_and_env)
    };
    let before = state();
    let name: LvName = "Base-0.2".parse().unwrap();
    let failed: Result<()> = change(|tx| {
        let entry = Entry::new(&boot.vg, &name, false, &spec)?;
        boot.write_entries(tx, &name, std::slice::from_ref(&entry))?;
        boot.set_default(tx, &entry.id)?;
        boot.remove_last(tx, &["Base-0.1".parse()?])?;
        assert_ne!(state(), before);
        bail!("later")
    });
    assert_eq!(failed.unwrap_err().to_string(), "later");
    assert_eq!(state(), before);
}

#[test]
fn a_kernel_that_a_later_part_needs_again_stays() {
    let (_dir, boot) = partition();
    let (system, name) = (system(), "Base-0.2".parse().unwrap());
    let spec = publish(&boot, &system);
    add(&boot, "Base-0.1", &spec).unwrap();
    fs::write(system.path().join(INITRD), "other initramfs").unwrap();
    add(&boot, "Base-0", &publish(&boot, &system)).unwrap();
    change(|tx| {
        boot.remove_last(tx, &["Base-0.1".parse()?])?;
        let entry = Entry::new(&boot.vg, &name, false, &spec)?;
        boot.write_entries(tx, &name, &[entry])
    })
    .unwrap();
    assert!(boot.has_kernel(&spec));
}

#[test]
fn entries_menu_and_default_of_several_layers() {
    let (dir, boot) = partition();
    let spec = publish(&boot, &system());
    assert_eq!(boot.default_id().unwrap(), None);
    for name in ["Base-0", "Base-0.9", "Base-0.10"] {
        add(&boot, name, &spec).unwrap();
    }
    let layers: Vec<String> = boot
        .entries()
        .unwrap()
        .iter()
        .filter_map(|e| e.layer().map(str::to_owned))
        .collect();
    assert_eq!(layers, ["Base-0.10", "Base-0.9", "Base-0"]);
    let menu = fs::read_to_string(dir.path().join("grub/imgbased.cfg")).unwrap();
    let titles: Vec<&str> = menu
        .lines()
        .filter(|line| line.contains("--id 'imgbased-"))
        .filter_map(|line| line.strip_prefix("menuentry '")?.split(' ').next())
        .collect();
    assert_eq!(titles, ["Base-0.10", "Base-0.9", "Base-0"]);

    change(|tx| boot.set_default(tx, "imgbased-Base-0.9")).unwrap();
    assert_eq!(
        boot.default_id().unwrap().as_deref(),
        Some("imgbased-Base-0.9")
    );
    let block = fs::read(dir.path().join("grub/grubenv")).unwrap();
    assert_eq!(block.len(), 1024);
}

#[test]
fn what_others_have_on_the_partition_stays_as_it_is() {
    let (dir, boot) = partition();
    let foreign = [
        (
            "loader/entries/debian.conf",
            "title Debian\nlinux /vmlinuz\noptions root=/dev/sda1\n",
        ),
        ("loader/entries/.hidden.conf", "options imgbased.layer=x\n"),
        ("loader/entries/notes.txt", "options imgbased.layer=x\n"),
        ("vmlinuz", "their kernel"),
        ("grub/grub.cfg", "their menu"),
    ];
    for (path, content) in foreign {
        fs::create_dir_all(dir.path().join(path).parent().unwrap()).unwrap();
        fs::write(dir.path().join(path), content).unwrap();
    }
    let mut env = GrubEnv::default();
    env.set("their_variable", "x");
    fs::write(dir.path().join("grub/grubenv"), env.render().unwrap()).unwrap();

    let spec = publish(&boot, &system());
    let entry = add(&boot, "Base-0.1", &spec).unwrap();
    change(|tx| boot.set_default(tx, &entry.id)).unwrap();
    assert_eq!(boot.entries().unwrap(), [entry]);
    for (path, content) in foreign {
        assert_eq!(
            fs::read_to_string(dir.path().join(path)).unwrap(),
            content,
            "{path}"
        );
    }
    let block = fs::read(dir.path().join("grub/grubenv")).unwrap();
    let env = GrubEnv::parse(&block).unwrap();
    assert_eq!(env.get("their_variable"), Some("x"));
}

fn remove(boot: &BootPartition, layers: &[&str]) -> Result<()> {
    let layers: Vec<LvName> = layers.iter().map(|l| l.parse().unwrap()).collect();
    boot.check_removable(&layers)?;
    (1..=layers.len()).try_for_each(|n| change(|tx| boot.remove_last(tx, &layers[..n])))
}

#[test]
fn the_last_reference_removes_a_kernel() {
    let (dir, boot) = partition();
    let system = system();
    let old = publish(&boot, &system);
    fs::write(system.path().join(INITRD), "other initramfs").unwrap();
    let new = publish(&boot, &system);
    add(&boot, "Base-0.1", &old).unwrap();
    add(&boot, "Base-0.2", &old).unwrap();
    add(&boot, "Base-0.3", &new).unwrap();
    let exists = |path: &str| dir.path().join(path.trim_start_matches('/')).exists();

    remove(&boot, &["Base-0.1"]).unwrap();
    assert!(exists(&old.linux) && exists(&old.initrd));
    remove(&boot, &["Base-0.2"]).unwrap();
    assert!(exists(&old.linux) && !exists(&old.initrd) && exists(&new.initrd));
    let menu = fs::read_to_string(dir.path().join("grub/imgbased.cfg")).unwrap();
    assert_eq!(menu.matches("--id 'imgbased-").count(), 1);
}

#[test]
fn a_kernel_that_an_entry_of_others_names_is_kept() {
    let (dir, boot) = partition();
    let spec = publish(&boot, &system());
    add(&boot, "Base-0.1", &spec).unwrap();
    add(&boot, "Base-1.1", &publish(&boot, &system())).unwrap();
    let theirs = format!("title Memtest\nlinux {}\n", spec.linux);
    fs::write(dir.path().join("loader/entries/theirs.conf"), theirs).unwrap();
    remove(&boot, &["Base-0.1"]).unwrap();
    assert!(dir.path().join(spec.linux.trim_start_matches('/')).exists());
}

#[test]
fn what_is_no_file_of_an_entry_does_not_count() {
    let (dir, boot) = partition();
    let spec = publish(&boot, &system());
    add(&boot, "Base-0.1", &spec).unwrap();
    add(&boot, "Base-0.2", &spec).unwrap();
    let entries = dir.path().join(ENTRIES);
    for name in ["old", "backup.conf", "imgbased-Base-0.3+2-1.conf"] {
        fs::create_dir(entries.join(name)).unwrap();
    }
    fs::write(entries.join("notes"), format!("keep {}", spec.linux)).unwrap();
    assert_eq!(boot.entries().unwrap().len(), 2);
    assert!(boot.leftovers(false).unwrap().is_empty());
    assert!(!boot.has_entry().unwrap()(&"Base-0.3".parse().unwrap()));
    remove(&boot, &["Base-0.1"]).unwrap();
    assert_eq!(boot.entries().unwrap().len(), 1);
}

#[test]
fn an_entry_that_others_have_changed_goes_with_its_layer() {
    let (dir, boot) = partition();
    let spec = publish(&boot, &system());
    add(&boot, "Base-0.1", &spec).unwrap();
    let entry = add(&boot, "Base-0.2", &spec).unwrap();
    let path = dir.path().join("loader/entries/imgbased-Base-0.2.conf");
    let menu = || fs::read_to_string(dir.path().join("grub/imgbased.cfg")).unwrap();
    for options in ["it's imgbased.layer=Base-0.2", "root=/dev/sda1"] {
        let changed = entry.render().replace(&entry.options, options);
        fs::write(&path, changed).unwrap();
        change(|tx| boot.render_menu(tx)).unwrap();
        assert!(menu().contains("--id 'imgbased-Base-0.2'"));
    }
    remove(&boot, &["Base-0.2"]).unwrap();
    assert!(!path.exists() && !menu().contains("Base-0.2"));
    assert!(menu().contains("--id 'imgbased-Base-0.1'"));
}

#[test]
fn the_last_entry_is_not_removed() {
    let (_dir, boot) = partition();
    let spec = publish(&boot, &system());
    add(&boot, "Base-0", &spec).unwrap();
    add(&boot, "Base-0.1", &spec).unwrap();
    let error = remove(&boot, &["Base-0", "Base-0.1"])
        .unwrap_err()
        .to_string();
    assert_eq!(error, "no boot entry would be left");
    assert_eq!(boot.entries().unwrap().len(), 2);
}

#[test]
fn a_file_in_the_place_of_an_entry_is_not_replaced() {
    let (dir, boot) = partition();
    let spec = publish(&boot, &system());
    add(&boot, "a+1", &spec).unwrap();
    let path = dir.path().join("loader/entries/imgbased-Base-0.1.conf");
    fs::write(&path, "title mine\noptions root=/dev/sda1\n").unwrap();
    for name in ["a+1_", "Base-0.1"] {
        let error = add(&boot, name, &spec).unwrap_err().to_string();
        assert!(error.contains("is in the way"), "{error}");
    }
    assert!(fs::read_to_string(&path).unwrap().starts_with("title mine"));
}

#[test]
fn entries_of_another_group_are_its_own() {
    let (_dir, mut boot) = partition();
    let spec = publish(&boot, &system());
    let ours = add(&boot, "Base-0.1", &spec).unwrap();
    boot.vg = "TestVG".parse().unwrap();
    assert_eq!(boot.entry_of(&"Base-0.1".parse().unwrap()).unwrap(), None);
    let theirs = add(&boot, "Base-0.1", &spec).unwrap();
    assert_ne!(ours.id, theirs.id);
    assert_eq!(boot.entries().unwrap().len(), 2);
    remove(&boot, &["Base-0.1"]).unwrap();
    assert_eq!(boot.entries().unwrap(), [ours]);
}

#[test]
fn an_entry_that_would_break_the_menu_is_left_out_of_it() {
    let (dir, boot) = partition();
    let spec = publish(&boot, &system());
    let entry = add(&boot, "Base-0.1", &spec).unwrap();
    let debug = entry
        .render()
        .replace("title Base-0.1", "title Bob's debug");
    fs::write(dir.path().join("loader/entries/debug.conf"), debug).unwrap();
    add(&boot, "Base-0.2", &spec).unwrap();
    let menu = fs::read_to_string(dir.path().join("grub/imgbased.cfg")).unwrap();
    assert!(!menu.contains("Bob"), "{menu}");
    assert_eq!(menu.matches("--id 'imgbased-").count(), 2);
}

#[test]
fn an_entry_whose_kernel_is_gone_is_noticed() {
    let (dir, boot) = partition();
    let spec = publish(&boot, &system());
    assert!(boot.has_kernel(&spec));
    fs::write(dir.path().join(spec.initrd.trim_start_matches('/')), "").unwrap();
    assert!(!boot.has_kernel(&spec));
}

#[test]
fn a_damaged_grubenv_is_reported_and_rebuilt_only_when_asked() {
    let (dir, boot) = partition();
    let path = dir.path().join("grub/grubenv");
    fs::create_dir(dir.path().join("grub")).unwrap();
    fs::write(&path, "saved_entry=x\n").unwrap();
    let error = change(|tx| boot.set_default(tx, "y")).unwrap_err();
    assert!(format!("{error:#}").contains("is damaged"), "{error:#}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "saved_entry=x\n");
    assert!(boot.damage_of_env().unwrap().is_some());
    change(|tx| boot.rebuild_env(tx)).unwrap();
    assert_eq!(boot.damage_of_env().unwrap(), None);
    assert_eq!(boot.default_id().unwrap().as_deref(), Some("x"));
    assert_eq!(fs::metadata(&path).unwrap().len(), 1024);
}

#[test]
fn a_directory_that_nothing_is_mounted_at_is_no_boot_partition() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("boot")).unwrap();
    let error = BootPartition::at(root.path(), &"HostVG".parse().unwrap())
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("no boot partition is mounted at"), "{error}");
}

/// Installs kernels in a layer that has come up, one after the other; returns the ends of the ids of its entries
/// with their versions, and what is tried. Those on trial have a question mark.
fn update(boot: &BootPartition, system: &TempDir) -> (String, Option<String>) {
    let name: LvName = "Base-0.1".parse().unwrap();
    let before = boot.entries_of(&name).unwrap();
    let new = change(|tx| {
        let found = look_for_kernels(boot, tx, system, &known(&before))?;
        let kernels = boot.arrange(found, &before, &Told::new_layer(boot.can_try()));
        let entries = Entry::of_kernels(&boot.vg, &name, false, &kernels)?;
        boot.write_entries(tx, &name, &entries)?;
        let new = kernels.new.map(|at| entries[at].clone());
        if let Some(new) = &new {
            boot.make_default(tx, &name, new, State::New, 3)?;
        }
        Ok(new.map(|new| new.id))
    });
    (shown(boot), new.unwrap())
}

fn shown(boot: &BootPartition) -> String {
    let entries = boot.entries_of(&"Base-0.1".parse().unwrap()).unwrap();
    let shown = entries.iter().map(|entry| {
        let trial = if entry.is_trial() { "?" } else { "" };
        let id = entry.id.replace("imgbased-Base-0.1", "");
        format!("{id}={}{trial}", entry.version)
    });
    shown.collect::<Vec<_>>().join(" ")
}

/// A layer that has come up with Linux 6.1 and is the default, on a partition with this loader's files.
fn good_layer(config: &str) -> (TempDir, BootPartition, TempDir) {
    let (dir, boot) = partition();
    fs::create_dir_all(dir.path().join("grub")).unwrap();
    fs::write(dir.path().join("grub/grub.cfg"), config).unwrap();
    let system = with_kernels(&["6.1"]);
    refresh(&boot, &system, None, None);
    change(|tx| boot.set_default(tx, "imgbased-Base-0.1")).unwrap();
    (dir, boot, system)
}

const TRIED: &str = "imgbased-Base-0.1@6.2";

#[test]
fn a_kernel_that_comes_up_is_the_one_that_the_layer_boots() {
    let (_dir, boot, system) = good_layer(include_str!("../../grub/grub.cfg"));
    install(&system, "6.2");
    let tried = Some(TRIED.to_owned());
    assert_eq!(update(&boot, &system), ("=6.1 @6.2=6.2?".to_owned(), tried));
    assert_eq!(boot.trial().unwrap().unwrap().id, TRIED);
    assert_eq!(boot.default_id().unwrap().unwrap(), "imgbased-Base-0.1");
    // The package of another kernel runs the hook as well: nothing begins anew.
    assert_eq!(update(&boot, &system).1, None);
    assert_eq!(boot.trial().unwrap().unwrap().id, TRIED);

    let name: LvName = "Base-0.1".parse().unwrap();
    let bless = |release: &str, is_trial: bool| {
        let entry = boot
            .running_entry(&name, release, is_trial)
            .unwrap()
            .unwrap();
        let trial = boot.trial().unwrap();
        change(|tx| boot.bless(tx, &name, &entry, trial.as_ref())).unwrap();
    };
    // The old kernel comes up once more.
    bless("6.1", false);
    assert_eq!(shown(&boot), "=6.1 @6.2=6.2?");
    bless("6.2", true);
    assert_eq!(shown(&boot), "=6.2 @6.1=6.1");
    assert_eq!(boot.trial().unwrap(), None);
    assert_eq!(boot.default_id().unwrap().unwrap(), "imgbased-Base-0.1");

    // An initramfs that was made anew.
    fs::write(system.path().join("boot/initrd.img-6.2"), "anew").unwrap();
    assert_eq!(
        update(&boot, &system),
        ("=6.2 @6.2=6.2? @6.1=6.1".to_owned(), Some(TRIED.to_owned()))
    );
    bless("6.2", false);
    assert_eq!(shown(&boot), "=6.2 @6.2=6.2? @6.1=6.1");
    bless("6.2", true);
    assert_eq!(shown(&boot), "=6.2 @6.1=6.1");
    let entry = boot.entry_of(&name).unwrap().unwrap();
    assert_eq!(
        fs::read_to_string(boot.path_of(&entry.initrd)).unwrap(),
        "anew"
    );
}

#[test]
fn of_a_layer_on_trial_the_kernel_that_comes_up_is_the_one_that_it_boots() {
    let name: LvName = "Base-0.2".parse().unwrap();
    let own = |id: &str, version: &str, is_trial| (id.to_owned(), version.to_owned(), is_trial);
    // Whether all its entries are on trial or the first alone, and whether its trial goes on, is over, or was never begun.
    for (are_all_tried, is_begun, is_recorded) in [
        (true, true, false),
        (false, true, false),
        (true, true, true),
        (true, false, false),
    ] {
        let (_dir, boot, system) = good_layer(include_str!("../../grub/grub.cfg"));
        install(&system, "6.2");
        change(|tx| {
            let kernels = look_for_kernels(&boot, tx, &system, &known(&[]))?;
            let mut entries =
                Entry::of_kernels(&boot.vg, &name, false, &Arrangement::plain(kernels))?;
            if are_all_tried {
                entries = entries.into_iter().map(Entry::on_trial).collect();
            }
            boot.write_entries(tx, &name, &entries)?;
            if is_begun {
                boot.make_default(tx, &name, &entries[0], State::New, 3)?;
            }
            if is_recorded {
                boot.end_trial(tx)?;
            }
            Ok(())
        })
        .unwrap();
        // The newest kernel panics, and somebody chooses the other one in the menu.
        let trial = boot.trial().unwrap();
        let entry = boot.running_entry(&name, "6.1", true).unwrap().unwrap();
        assert_eq!(entry.id, "imgbased-Base-0.2@6.1");
        change(|tx| boot.bless(tx, &name, &entry, trial.as_ref())).unwrap();
        let shown = boot.entries_of(&name).unwrap().into_iter();
        let shown: Vec<(String, String, bool)> = shown
            .map(|entry| (entry.id.clone(), entry.version.clone(), entry.is_trial()))
            .collect();
        assert_eq!(
            shown,
            [
                own("imgbased-Base-0.2", "6.1", false),
                own("imgbased-Base-0.2@6.2", "6.2", true)
            ]
        );
        assert_eq!(boot.trial().unwrap(), None);
        let is_tried = is_begun && !is_recorded;
        let default = if is_tried {
            "imgbased-Base-0.2"
        } else {
            "imgbased-Base-0.1"
        };
        assert_eq!(boot.default_id().unwrap().unwrap(), default);
    }
}

#[test]
fn a_kernel_that_does_not_come_up_is_tried_no_more() {
    let (dir, boot, system) = good_layer(include_str!("../../grub/grub.cfg"));
    install(&system, "6.2");
    update(&boot, &system);
    let exhaust = || {
        let path = dir.path().join("grub/grubenv");
        let mut env = GrubEnv::parse(&fs::read(&path).unwrap()).unwrap();
        env.set("imgbased_tried", "3");
        fs::write(&path, env.render().unwrap()).unwrap();
    };
    exhaust();
    let recorded = RefCell::new(Vec::new());
    let end = || {
        let trial = boot.trial().unwrap().unwrap();
        change(|tx| {
            boot.end_exhausted(
                tx,
                &trial,
                |_| true,
                |_, name, kernel| {
                    let failed = (name.to_string(), kernel.map(str::to_owned));
                    recorded.borrow_mut().push(failed);
                    Ok(())
                },
            )
        })
        .unwrap();
    };
    end();
    assert_eq!(
        recorded.borrow()[..],
        [("Base-0.1".to_owned(), Some("6.2".to_owned()))]
    );
    assert_eq!(boot.trial().unwrap(), None);
    assert_eq!(update(&boot, &system), ("=6.1 @6.2=6.2?".to_owned(), None));
    // The package manager's clean-up takes the last one that has come up.
    let name: LvName = "Base-0.1".parse().unwrap();
    fs::remove_dir_all(system.path().join("usr/lib/modules/6.1")).unwrap();
    assert_eq!(update(&boot, &system), ("=6.1 @6.2=6.2?".to_owned(), None));
    assert!(boot.has_kernel(&boot.entry_of(&name).unwrap().unwrap().spec()));

    // A person has it tried once more, and the power is cut when it has its place already.
    let entry = boot.entries_of(&name).unwrap().remove(1);
    change(|tx| boot.make_default(tx, &name, &entry, State::New, 3)).unwrap();
    exhaust();
    let confirmed = Entry {
        id: "imgbased-Base-0.1".to_owned(),
        ..entry.confirmed()
    };
    let path = boot.files.entry_path(&confirmed.id).unwrap();
    fs::write(path, confirmed.render()).unwrap();
    end();
    assert_eq!(recorded.borrow().len(), 1);
    assert_eq!(boot.trial().unwrap(), None);
}

#[test]
fn a_kernel_on_trial_that_is_removed_ends_the_trial() {
    let (_dir, boot, system) = good_layer(include_str!("../../grub/grub.cfg"));
    install(&system, "6.2");
    update(&boot, &system);
    fs::remove_dir_all(system.path().join("usr/lib/modules/6.2")).unwrap();
    assert_eq!(update(&boot, &system), ("=6.1".to_owned(), None));
    assert_eq!(boot.trial().unwrap(), None);
    assert!(boot.leftovers(false).unwrap().is_empty());
}

#[test]
fn where_nothing_can_be_tried_the_newest_kernel_boots() {
    // Its configuration does not show the menu, which counts.
    let (_dir, boot, system) = good_layer("set default=\"${saved_entry}\"\n");
    install(&system, "6.2");
    assert_eq!(update(&boot, &system), ("=6.2 @6.1=6.1".to_owned(), None));
}

#[test]
fn a_layer_that_does_not_run_keeps_its_own_copies() {
    let (dir, boot) = partition();
    let system = with_kernels(&["6.1"]);
    refresh(&boot, &system, None, None);
    let initrd = || {
        let entry = boot
            .entry_of(&"Base-0.1".parse().unwrap())
            .unwrap()
            .unwrap();
        fs::read_to_string(boot.path_of(&entry.initrd)).unwrap()
    };
    // As of another layer, which has made it for itself on the partition that they share.
    fs::remove_file(system.path().join("boot/initrd.img-6.1")).unwrap();
    fs::write(dir.path().join("initrd.img-6.1"), "of another").unwrap();
    refresh(&boot, &system, None, None);
    assert_eq!(initrd(), "initrd.img 6.1");
    // What its image has is older than what has come up since, and what was made in it later is not.
    let own = system.path().join("boot/initrd.img-6.1");
    for (content, time, wanted) in [
        ("of the image", SystemTime::UNIX_EPOCH, "initrd.img 6.1"),
        ("anew", SystemTime::now() + Duration::from_secs(60), "anew"),
    ] {
        fs::write(&own, content).unwrap();
        let file = fs::File::options().append(true).open(&own).unwrap();
        file.set_modified(time).unwrap();
        refresh(&boot, &system, None, None);
        assert_eq!(initrd(), wanted);
    }
    fs::remove_file(&own).unwrap();
    // Nothing else is there of one that was never booted.
    let other = publish(&boot, &system).initrd;
    assert_eq!(
        fs::read_to_string(boot.path_of(&other)).unwrap(),
        "of another"
    );
}

/// Packages have the times of when they were built.
#[test]
fn what_was_added_stays_when_all_are_looked_at() {
    let (_dir, boot) = partition();
    let system = with_kernels(&["6.1"]);
    let name: LvName = "Base-0.1".parse().unwrap();
    let arranged = |added: Option<&str>| {
        let before = boot.entries_of(&name).unwrap();
        let known = Known {
            added,
            ..known(&before)
        };
        change(|tx| {
            let found = look_for_kernels(&boot, tx, &system, &known)?;
            let kernels = boot.arrange(found, &before, &Told::new_layer(true));
            let entries = Entry::of_kernels(&boot.vg, &name, false, &kernels)?;
            boot.write_entries(tx, &name, &entries)?;
            let image = |entry: &Entry| fs::read_to_string(boot.path_of(&entry.linux)).unwrap();
            Ok(entries
                .iter()
                .map(|entry| (image(entry), entry.is_trial()))
                .collect::<Vec<_>>())
        })
        .unwrap()
    };
    assert_eq!(arranged(None), [("vmlinuz 6.1".to_owned(), false)]);
    let image = system.path().join("boot/vmlinuz-6.1");
    fs::write(&image, "rebuilt").unwrap();
    let file = fs::File::options().append(true).open(&image).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    let first = ("vmlinuz 6.1".to_owned(), false);
    assert_eq!(arranged(None), std::slice::from_ref(&first));
    let both = [first, ("rebuilt".to_owned(), true)];
    assert_eq!(arranged(Some("6.1")), both);
    assert_eq!(arranged(None), both);
}

#[test]
fn a_copy_that_is_damaged_and_found_nowhere_else_is_in_no_entry() {
    let (_dir, boot) = partition();
    let system = with_kernels(&["6.2", "6.1"]);
    refresh(&boot, &system, None, None);
    let name: LvName = "Base-0.1".parse().unwrap();
    let versions = || -> Vec<String> {
        let entries = boot.entries_of(&name).unwrap().into_iter();
        entries.map(|entry| entry.version).collect()
    };
    assert_eq!(versions(), ["6.2", "6.1"]);
    let first = boot.entry_of(&name).unwrap().unwrap();
    let initrd = boot.path_of(&first.initrd);
    fs::write(&initrd, "half").unwrap();
    // As it can be made anew.
    refresh(&boot, &system, None, None);
    assert_eq!(versions(), ["6.2", "6.1"]);
    assert_eq!(fs::read_to_string(&initrd).unwrap(), "initrd.img 6.2");
    fs::write(&initrd, "half").unwrap();
    fs::remove_file(system.path().join("boot/initrd.img-6.2")).unwrap();
    refresh(&boot, &system, None, None);
    assert_eq!(versions(), ["6.1"]);
}

#[test]
fn what_is_newer_than_all_copies_and_another_file_is_changed() {
    let (_dir, boot) = partition();
    let system = with_kernels(&["6.1"]);
    refresh(&boot, &system, None, None);
    let changed = || {
        let entries = boot.entries_of(&"Base-0.1".parse().unwrap()).unwrap();
        let root = Root::at(system.path());
        boot.store().changed(&root, &entries).unwrap()
    };
    assert!(changed().is_empty());
    let initrd = system.path().join("boot/initrd.img-6.1");
    let make_newer = || {
        let file = fs::File::options().append(true).open(&initrd).unwrap();
        file.set_modified(SystemTime::now() + Duration::from_secs(60))
            .unwrap();
    };
    // Made anew with the same content.
    make_newer();
    assert!(changed().is_empty());
    fs::write(&initrd, "anew").unwrap();
    make_newer();
    assert_eq!(changed(), ["6.1"]);
    refresh(&boot, &system, None, None);
    assert!(changed().is_empty());
    // The partition hides the kernel itself.
    fs::remove_file(system.path().join("boot/vmlinuz-6.1")).unwrap();
    fs::write(&initrd, "anew again").unwrap();
    make_newer();
    assert_eq!(changed(), ["6.1"]);
    refresh(&boot, &system, None, None);
    // The hook of its package has failed.
    install(&system, "6.2");
    assert_eq!(changed(), ["6.2"]);
}

/// As after a rollback from a layer that has made its initramfs anew: both have the same /boot.
#[test]
fn what_another_layer_has_left_on_the_partition_is_not_taken() {
    let (_dir, boot) = partition();
    let system = with_kernels(&["6.1"]);
    refresh(&boot, &system, None, None);
    let name: LvName = "Base-0.1".parse().unwrap();
    let entries = || boot.entries_of(&name).unwrap();
    let initrd = || boot.path_of(&entries()[0].initrd);
    let before = initrd();
    let other = with_kernels(&["6.1"]);
    let [left, made] = [&system, &other].map(|system| system.path().join("boot/initrd.img-6.1"));
    fs::write(&made, "of another").unwrap();
    publish(&boot, &other);
    fs::write(&left, "of another").unwrap();
    let set_time = |path: &Path, seconds: u64| {
        let file = fs::File::options().append(true).open(path).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        file.set_modified(time).unwrap();
    };
    // Long before this system was started.
    set_time(&before, 1);
    set_time(&left, 2);
    let is_changed = || {
        let root = Root::at(system.path());
        !boot.store().changed(&root, &entries()).unwrap().is_empty()
    };
    assert!(!is_changed());
    // What nobody has is of nobody else.
    fs::write(&left, "of nobody").unwrap();
    set_time(&left, 2);
    assert!(is_changed());
    // What was made since is of who runs.
    fs::write(&left, "of another").unwrap();
    assert!(is_changed());
    set_time(&left, 2);
    let keeps = |added| {
        let known = Known {
            added,
            ..known(&[])
        };
        let entries = entries();
        let known = Known {
            entries: &entries,
            ..known
        };
        let specs = change(|tx| look_for_kernels(&boot, tx, &system, &known)).unwrap();
        boot.path_of(&specs[0].initrd) == before
    };
    assert!(keeps(None));
    assert!(!keeps(Some("6.1")));
}

#[test]
fn the_partition_has_the_kernel_that_was_read_from_it() {
    let (_dir, boot) = partition();
    let linux = publish(&boot, &system()).linux;
    let other = "/imgbased/vmlinuz-6.1-0123456789abcdef";
    for (cmdline, missing) in [
        (format!("BOOT_IMAGE=(hd0,gpt2){linux} quiet"), None),
        (format!("BOOT_IMAGE={linux}"), None),
        (format!("BOOT_IMAGE=(hd0,gpt2){other} quiet"), Some(other)),
        // Of another system, or of a loader that does not tell.
        ("BOOT_IMAGE=(hd0,gpt2)/vmlinuz-6.1 quiet".to_owned(), None),
        ("quiet".to_owned(), None),
    ] {
        assert_eq!(
            boot.missing_boot_image(&cmdline).as_deref(),
            missing,
            "{cmdline}"
        );
    }
}

const OLD_ID: &str = "68CM0U-m031-EmV1-U9Vn-3yA0-7NL3-j32vhZ";
const NEW_ID: &str = "mZ7rTq-0a1B-2c3D-4e5F-6g7H-8i9J-Kl0mNo";

fn of_group(boot: &BootPartition, uuid: &str) {
    for name in boot.named_by(&boot.entries().unwrap()) {
        let uuid = uuid.parse().unwrap();
        change(|tx| boot.change_entries(tx, &name, |entry| entry.of_group(&uuid))).unwrap();
    }
}

/// What is found of our group, with this UUID, under other names.
fn renamed(boot: &BootPartition, uuid: &str, layers: &[&str], is_gone: bool) -> Vec<Entry> {
    let bootable: Vec<LvName> = layers.iter().map(|name| name.parse().unwrap()).collect();
    let known = renamed::Known {
        uuid,
        bootable: &bootable,
        is_gone: &|_| is_gone,
    };
    boot.renamed(&boot.entries().unwrap(), &known).unwrap()
}

fn rename(boot: &BootPartition, old: &[Entry], uuid: &str) -> Result<()> {
    let uuid = uuid.parse().unwrap();
    change(|tx| boot.rename(tx, old, Some(&uuid)))
}

/// A group that is called Renamed now, on a partition that knows it as `HostVG`: two layers and a base,
/// one layer with a second kernel.
fn renamed_host() -> (TempDir, BootPartition) {
    let (dir, mut boot) = partition();
    let host = tempfile::tempdir().unwrap();
    fs::create_dir(host.path().join("boot")).unwrap();
    for version in ["6.1", "6.2"] {
        install(&host, version);
    }
    refresh(&boot, &host, None, None);
    let spec = publish(&boot, &system());
    for name in ["Base-0", "Base-0.2"] {
        add(&boot, name, &spec).unwrap();
    }
    of_group(&boot, OLD_ID);
    boot.vg = "Renamed".parse().unwrap();
    (dir, boot)
}

fn ids(boot: &BootPartition) -> Vec<String> {
    let entries = boot.entries().unwrap();
    entries.into_iter().map(|entry| entry.id).collect()
}

#[test]
fn a_renamed_group_boots_what_it_booted() {
    const NEW: [&str; 4] = [
        "imgbased-Renamed-Base-0.2",
        "imgbased-Renamed-Base-0.1",
        "imgbased-Renamed-Base-0.1@6.1",
        "imgbased-Renamed-Base-0",
    ];
    let default = ("saved_entry", "imgbased-Base-0.1");
    let trial = [
        ("imgbased_trial", "imgbased-Base-0.2"),
        ("imgbased_tries", "3"),
        ("imgbased_tried", "1"),
    ];
    for (variables, next) in [
        (&[default][..], "imgbased-Renamed-Base-0.1"),
        (
            &[("saved_entry", "imgbased-Base-0.1@6.1")],
            "imgbased-Renamed-Base-0.1@6.1",
        ),
        (
            &[default, trial[0], trial[1], trial[2]],
            "imgbased-Renamed-Base-0.2, on trial",
        ),
        (
            &[default, ("next_entry", "imgbased-Base-0")],
            "imgbased-Renamed-Base-0, once",
        ),
    ] {
        let (dir, boot) = renamed_host();
        let mut env = GrubEnv::default();
        for (name, value) in [&[("theirs", "imgbased-Base-0.1")][..], variables].concat() {
            env.set(name, value);
        }
        fs::write(dir.path().join("grub/grubenv"), env.render().unwrap()).unwrap();
        let kernels = files_below(&dir.path().join(KERNELS));
        let before = boot.next_start().unwrap().to_string();
        assert_eq!(before, next.replace("Renamed-", ""));

        let old = renamed(&boot, OLD_ID, &[], false);
        assert_eq!(old.len(), NEW.len());
        rename(&boot, &old, OLD_ID).unwrap();
        assert_eq!(ids(&boot), NEW);
        assert_eq!(boot.next_start().unwrap().to_string(), next);
        assert!(renamed(&boot, OLD_ID, &[], true).is_empty());
        for entry in boot.entries().unwrap() {
            let name = entry.layer().unwrap();
            let wanted =
                format!("imgbased.layer={name} imgbased.vg=Renamed imgbased.vgid={OLD_ID} quiet");
            assert_eq!(entry.options, wanted);
            assert!(boot.has_kernel(&entry.spec()));
        }
        assert!(boot.has_menu_of(&boot.entries().unwrap()).unwrap());
        assert_eq!(files_below(&dir.path().join(KERNELS)), kernels);
        let block = fs::read(dir.path().join("grub/grubenv")).unwrap();
        let env = GrubEnv::parse(&block).unwrap();
        assert_eq!(env.get("theirs"), Some("imgbased-Base-0.1"));
        for (name, value) in variables {
            let wanted = value.replace("imgbased-", "imgbased-Renamed-");
            assert_eq!(env.get(name), Some(wanted.as_str()), "{name}");
        }
    }
}

#[test]
fn a_group_gets_the_default_name_back() {
    let (_dir, mut boot) = renamed_host();
    change(|tx| boot.set_default(tx, "imgbased-Base-0.1")).unwrap();
    rename(&boot, &renamed(&boot, OLD_ID, &[], false), OLD_ID).unwrap();
    boot.vg = "HostVG".parse().unwrap();
    rename(&boot, &renamed(&boot, OLD_ID, &[], false), OLD_ID).unwrap();
    let entry = boot
        .entry_of(&"Base-0.1".parse().unwrap())
        .unwrap()
        .unwrap();
    let wanted = format!("imgbased.layer=Base-0.1 imgbased.vgid={OLD_ID} quiet");
    assert_eq!(entry.options, wanted);
    assert_eq!(boot.next_start().unwrap().id(), Some("imgbased-Base-0.1"));
    assert_eq!(boot.entries().unwrap().len(), 4);
}

#[test]
fn what_is_interrupted_while_a_group_is_renamed_is_done_later() {
    let done = |host: &(TempDir, BootPartition)| {
        let (dir, boot) = host;
        let old = renamed(boot, NEW_ID, &["Base-0", "Base-0.1", "Base-0.2"], true);
        rename(boot, &old, NEW_ID).unwrap();
        let text = |path: &String| fs::read(dir.path().join(path)).unwrap();
        let files = files_below(dir.path());
        let texts: Vec<_> = files.iter().map(text).collect();
        (files, texts)
    };
    let host = || {
        let host = renamed_host();
        change(|tx| host.1.set_default(tx, "imgbased-Base-0.1")).unwrap();
        host
    };
    let wanted = done(&host());
    // Power is cut after so many steps: nothing is undone.
    for steps in 1.. {
        let host = host();
        let (_, boot) = &host;
        let old = renamed(boot, NEW_ID, &["Base-0", "Base-0.1", "Base-0.2"], true);
        assert_eq!(old.len(), 4);
        let uuid = NEW_ID.parse().unwrap();
        let is_cut = cut_before(steps, |tx| boot.rename(tx, &old, Some(&uuid))).unwrap();
        let next = boot.next_start().unwrap();
        let default = ["imgbased-Base-0.1", "imgbased-Renamed-Base-0.1"];
        assert!(
            next.id().is_some_and(|id| default.contains(&id)) && next.problem().is_none(),
            "{steps}: {next}"
        );
        assert_eq!(done(&host), wanted, "{steps}");
        if !is_cut {
            assert!(steps > 15, "{steps}");
            break;
        }
    }
}

#[test]
fn a_failure_leaves_a_renamed_group_as_it_was() {
    let (dir, boot) = renamed_host();
    change(|tx| boot.set_default(tx, "imgbased-Base-0.1")).unwrap();
    let before = (files_below(dir.path()), ids(&boot));
    let old = renamed(&boot, OLD_ID, &[], false);
    let uuid = OLD_ID.parse().unwrap();
    let failed: Result<()> = change(|tx| {
        boot.rename(tx, &old, Some(&uuid))?;
        bail!("later")
    });
    assert_eq!(failed.unwrap_err().to_string(), "later");
    assert_eq!((files_below(dir.path()), ids(&boot)), before);
    assert_eq!(boot.default_id().unwrap().unwrap(), "imgbased-Base-0.1");

    // Something else has the name of a new entry.
    let path = dir
        .path()
        .join("loader/entries/imgbased-Renamed-Base-0.conf");
    fs::write(&path, "title mine\noptions root=/dev/sda1\n").unwrap();
    let error = rename(&boot, &old, OLD_ID).unwrap_err().to_string();
    assert!(error.contains("is in the way"), "{error}");
    assert_eq!(ids(&boot), before.1);
}

#[test]
fn a_copy_is_told_by_its_layers_where_its_first_group_is_not_there() {
    let layers = ["Base-0", "Base-0.1", "Base-0.2"];
    let (_dir, mut boot) = renamed_host();
    assert_eq!(renamed(&boot, NEW_ID, &layers, true).len(), 4);
    assert_eq!(renamed(&boot, NEW_ID, &["Base-0.2"], true).len(), 1);
    assert!(renamed(&boot, NEW_ID, &layers, false).is_empty());
    // With entries of its own on the partition, the others are of a group whose disks are away.
    boot.vg = "Other".parse().unwrap();
    let spec = boot.entries().unwrap()[0].spec();
    add(&boot, "Base-0.1", &spec).unwrap();
    assert!(renamed(&boot, NEW_ID, &layers, true).is_empty());
    assert_eq!(renamed(&boot, OLD_ID, &layers, false).len(), 4);
}

#[test]
fn entries_that_others_have_written_are_not_renamed() {
    let (dir, boot) = renamed_host();
    let debug = boot.entries().unwrap()[0].render();
    fs::write(dir.path().join("loader/entries/debug.conf"), &debug).unwrap();
    let old = renamed(&boot, OLD_ID, &[], false);
    rename(&boot, &old, OLD_ID).unwrap();
    let path = dir.path().join("loader/entries/debug.conf");
    assert_eq!(fs::read_to_string(path).unwrap(), debug);
    assert_eq!(ids(&boot).len(), 5);
}

#[test]
fn entries_of_a_restored_group_get_its_new_uuid() {
    let (_dir, boot) = partition();
    let spec = publish(&boot, &system());
    let name: LvName = "Base-0.1".parse().unwrap();
    add(&boot, "Base-0.1", &spec).unwrap();
    change(|tx| boot.set_default(tx, "imgbased-Base-0.1")).unwrap();
    for uuid in [OLD_ID, NEW_ID] {
        of_group(&boot, uuid);
        let entry = boot.entry_of(&name).unwrap().unwrap();
        let wanted = format!("imgbased.layer=Base-0.1 imgbased.vgid={uuid} quiet");
        assert_eq!(entry.options, wanted);
    }
}

#[test]
fn a_kernel_that_was_installed_before_the_entries_are_renamed_stays() {
    let (_dir, boot) = renamed_host();
    let old = boot.entry_of(&"Base-0.1".parse().unwrap());
    assert_eq!(old.unwrap(), None);
    change(|tx| boot.set_default(tx, "imgbased-Base-0.1")).unwrap();
    let host = tempfile::tempdir().unwrap();
    fs::create_dir(host.path().join("boot")).unwrap();
    install(&host, "6.3");
    let newest = refresh(&boot, &host, None, None);
    rename(&boot, &renamed(&boot, OLD_ID, &[], false), OLD_ID).unwrap();
    let entries = boot.entries_of(&"Base-0.1".parse().unwrap()).unwrap();
    let versions: Vec<&str> = entries.iter().map(|e| e.version.as_str()).collect();
    assert_eq!((versions, newest.len()), (vec!["6.3", "6.1"], 1));
    assert!(boot.leftovers(false).unwrap().is_empty());
    let next = boot.next_start().unwrap();
    assert_eq!(next.id(), Some("imgbased-Renamed-Base-0.1"));
    assert!(entries.iter().all(|entry| boot.has_kernel(&entry.spec())));
}

/// An EFI system partition of such a host, and its directory of entries.
fn renamed_esp(config: &str) -> (TempDir, BootPartition) {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("boot");
    for sub in ["EFI/systemd", "loader"] {
        fs::create_dir_all(dir.join(sub)).unwrap();
    }
    fs::write(dir.join("loader/loader.conf"), config).unwrap();
    let vg = "HostVG".parse().unwrap();
    let mut boot = BootPartition::in_dir(&dir, root.path(), &vg).unwrap();
    let spec = publish(&boot, &system());
    for name in ["Base-0", "Base-0.1", "Base-0.2"] {
        add(&boot, name, &spec).unwrap();
    }
    of_group(&boot, OLD_ID);
    boot.vg = "Renamed".parse().unwrap();
    (root, boot)
}

#[test]
fn a_renamed_group_boots_what_it_booted_under_systemd_boot() {
    let (root, boot) = renamed_esp("timeout 3\ndefault imgbased-Base-0.1.conf\n");
    let before = boot.next_start().unwrap();
    assert_eq!(before.id(), Some("imgbased-Base-0.1"));
    rename(&boot, &renamed(&boot, OLD_ID, &[], false), OLD_ID).unwrap();
    let after = boot.next_start().unwrap();
    assert_eq!(after.id(), Some("imgbased-Renamed-Base-0.1"));
    let config = fs::read_to_string(root.path().join("boot/loader/loader.conf")).unwrap();
    assert_eq!(
        config,
        "timeout 3\ndefault imgbased-Renamed-Base-0.1.conf\n"
    );
    assert_eq!(ids(&boot).len(), 3);
}

#[test]
fn a_trial_under_systemd_boot_goes_on_in_a_renamed_group() {
    let (root, boot) = renamed_esp("timeout 3\n");
    let entries = root.path().join("boot/loader/entries");
    let rank = |name: &str, file: &str, rank: &str| {
        let text = fs::read_to_string(entries.join(format!("{name}.conf"))).unwrap();
        fs::remove_file(entries.join(format!("{name}.conf"))).unwrap();
        let text = text.replace("sort-key ", &format!("sort-key {rank}"));
        fs::write(entries.join(format!("{file}.conf")), text).unwrap();
    };
    rank("imgbased-Base-0.2", "imgbased-Base-0.2+2-1", "0-");
    rank("imgbased-Base-0.1", "imgbased-Base-0.1", "1-");
    let state = |boot: &BootPartition| {
        let trial = boot.trial().unwrap().unwrap();
        let next = boot.next_start().unwrap().to_string();
        (trial, boot.default_id().unwrap().unwrap(), next)
    };
    let (trial, default, next) = state(&boot);
    assert_eq!((trial.tries, trial.tried), (3, 1));
    rename(&boot, &renamed(&boot, OLD_ID, &[], false), OLD_ID).unwrap();
    let new = |id: &str| id.replace("imgbased-", "imgbased-Renamed-");
    let trial = Trial {
        id: new(&trial.id),
        ..trial
    };
    assert_eq!(state(&boot), (trial, new(&default), new(&next)));
    assert!(entries.join("imgbased-Renamed-Base-0.2+2-1.conf").exists());
    assert_eq!(ids(&boot).len(), 3);
}

#[test]
fn systemd_boot_boots_what_has_come_up_where_no_default_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let variables = Variables::new(dir.path().join("none"), Cmd::new("bootctl"));
    let vg = "HostVG".parse().unwrap();
    let boot = BootPartition::started_by_systemd_boot(dir.path(), &vg, variables);
    let spec = publish(&boot, &system());
    add(&boot, "Base-0.1", &spec).unwrap();
    // Newer, and its kernel as well.
    let newer = BootSpec {
        version: "6.2".into(),
        ..spec.clone()
    };
    let name: LvName = "Base-0.2".parse().unwrap();
    let trial = Entry::new(&vg, &name, false, &newer).unwrap().on_trial();
    change(|tx| boot.write_entries(tx, &name, std::slice::from_ref(&trial))).unwrap();
    let next = || boot.next_start().unwrap().id().map(str::to_owned);
    assert_eq!(next().as_deref(), Some("imgbased-Base-0.1"));
    // The same again changes nothing.
    let path = dir.path().join("loader/entries/imgbased-Base-0.2.conf");
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    change(|tx| boot.write_entries(tx, &name, &[trial])).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);

    // A kernel on trial is not beside the other of its layer.
    let name: LvName = "Base-0.1".parse().unwrap();
    let first = boot.entry_of(&name).unwrap().unwrap();
    let kernel = Entry {
        id: "imgbased-Base-0.1@6.2".into(),
        version: "6.2".into(),
        ..first.clone().on_trial()
    };
    change(|tx| boot.write_entries(tx, &name, &[first, kernel])).unwrap();
    assert_eq!(next().as_deref(), Some("imgbased-Base-0.1"));
    let names = boot.named_by(&boot.entries().unwrap());
    assert_eq!(names.len(), 2, "{names:?}");
    change(|tx| boot.write_entries(tx, &"Base-0.2".parse()?, &[confirmed(&boot)])).unwrap();
    assert_eq!(next().as_deref(), Some("imgbased-Base-0.2"));
}

#[test]
fn systemd_boot_is_not_told_to_boot_what_it_does_not_list() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("boot");
    fs::create_dir_all(dir.join("EFI/systemd")).unwrap();
    let boot = BootPartition::in_dir(&dir, root.path(), &"HostVG".parse().unwrap()).unwrap();
    let spec = publish(&boot, &system());
    add(&boot, "Base-0.1", &spec).unwrap();
    let lost = BootSpec {
        linux: "/imgbased/lost".into(),
        ..spec
    };
    let entry = add(&boot, "Base-0.2", &lost).unwrap();
    let name: LvName = "Base-0.2".parse().unwrap();
    let refused = change(|tx| boot.make_default(tx, &name, &entry, State::Good, 0));
    assert_eq!(
        refused.unwrap_err().to_string(),
        "imgbased-Base-0.2 would not boot, but imgbased-Base-0.1, as the default is not there: its kernel or \
         initramfs cannot be read; `imgbased-helper boot repair` writes it"
    );
    assert!(!dir.join("loader/loader.conf").exists());
}

/// The entry of Base-0.2 as it is when that has come up.
fn confirmed(boot: &BootPartition) -> Entry {
    let entry = boot.entry_of(&"Base-0.2".parse().unwrap()).unwrap();
    entry.unwrap().confirmed()
}
