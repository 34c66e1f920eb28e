//! What GRUB boots, start by start, found out by GRUB's own program on the boot partition of a host. Each
//! start takes a twentieth of a second, so whole stories fit in here; that machines do the same is shown
//! in `trials.rs` and `next_start.rs` of the scenarios.
//!
//! `IMGBASED_STATES` sets how many random states are tried, `IMGBASED_SEED` which: each failure says how to
//! have it again.

mod chains;
mod emulator;
mod host;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};
use std::{env, fs, thread};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;

use chains::{Ground, State};
use emulator::{Kernel, Start};
use host::{CONFIGS, Config, FOREIGN_ID, Host, STOCK_ID, emulated};

/// How many random states are tried, unless more are asked for.
const STATES: u64 = 60;
const GROUND: Ground = Ground {
    configs: &CONFIGS,
    machine: &emulated,
    starts: 12,
    simplifies: true,
};

#[test]
fn the_default_boots() -> Result<()> {
    let mut host = Host::with(&["Base-0.2"])?;
    for _ in 0..2 {
        host.starts("Base-0.1")?;
        host.come_up("Base-0.1")?;
        assert_eq!(host.environment()?, "saved_entry=Base-0.1");
    }
    Ok(())
}

#[test]
fn what_boots_once_is_followed_by_the_default() -> Result<()> {
    let mut host = Host::with(&["Base-0.2"])?;
    for (name, start) in [("Base-0.2", "Base-0.2 on trial"), ("Base-0", "Base-0")] {
        host.once(name)?;
        assert_eq!(
            host.environment()?,
            format!("next_entry={name} saved_entry=Base-0.1")
        );
        host.starts(start)?;
        for _ in 0..2 {
            assert_eq!(host.environment()?, "saved_entry=Base-0.1");
            host.starts("Base-0.1")?;
        }
    }
    host.once("Base-0.2")?;
    host.cancel_once()?;
    host.starts("Base-0.1")
}

#[test]
fn a_layer_that_comes_up_once_is_no_default_but_needs_no_trial_any_more() -> Result<()> {
    let mut host = Host::with(&["Base-0.2"])?;
    host.once("Base-0.2")?;
    host.starts("Base-0.2 on trial")?;
    host.come_up("Base-0.2")?;
    host.starts("Base-0.1")?;
    host.make_default("Base-0.2", 3)?;
    assert_eq!(host.environment()?, "saved_entry=Base-0.2");
    host.starts("Base-0.2")
}

#[test]
fn a_layer_that_never_comes_up_is_tried_as_often_as_asked_and_given_up() -> Result<()> {
    for tries in [1, 2, 3, 9] {
        let mut host = Host::with(&["Base-0.2"])?;
        host.make_default("Base-0.2", tries)?;
        // Whoever asks again asks for as many again.
        for _ in 0..2 {
            for tried in 1..=tries {
                host.starts("Base-0.2 on trial")?;
                host.is_tried(tried, tries)?;
            }
            // It stays given up, whether the default comes up or not.
            for _ in 0..2 {
                host.starts("Base-0.1")?;
                host.is_tried(tries, tries)?;
            }
            host.come_up("Base-0.1")?;
            assert_eq!(host.environment()?, "saved_entry=Base-0.1");
            host.starts("Base-0.1")?;
            host.make_default("Base-0.2", tries)?;
            host.is_tried(0, tries)?;
        }
    }
    Ok(())
}

#[test]
fn a_layer_that_comes_up_at_its_last_try_or_before_stays_the_default() -> Result<()> {
    for failures in 0..3 {
        let mut host = Host::with(&["Base-0.2", "Base-0.3"])?;
        host.make_default("Base-0.2", 3)?;
        for _ in 0..failures {
            host.starts("Base-0.2 on trial")?;
        }
        host.starts("Base-0.2 on trial")?;
        host.is_tried(failures + 1, 3)?;
        host.come_up("Base-0.2")?;
        for _ in 0..2 {
            assert_eq!(host.environment()?, "saved_entry=Base-0.2");
            host.starts("Base-0.2")?;
        }
    }
    Ok(())
}

#[test]
fn a_layer_whose_success_was_recorded_in_part_becomes_the_default() -> Result<()> {
    let mut host = Host::with(&["Base-0.2"])?;
    host.make_default("Base-0.2", 1)?;
    host.starts("Base-0.2 on trial")?;
    // The power was cut after the tag of the volume.
    host.good.insert("Base-0.2".to_owned());
    host.starts("Base-0.1")?;
    host.come_up("Base-0.1")?;
    assert_eq!(host.environment()?, "saved_entry=Base-0.2");
    host.starts("Base-0.2")
}

#[test]
fn a_trial_ends_when_another_default_is_chosen() -> Result<()> {
    let mut host = Host::with(&["Base-0.2", "Base-0.3"])?;
    host.make_default("Base-0.2", 3)?;
    host.starts("Base-0.2 on trial")?;
    host.make_default("Base-0.1", 3)?;
    assert_eq!(host.environment()?, "saved_entry=Base-0.1");
    host.starts("Base-0.1")?;
    // One trial takes the place of another.
    host.make_default("Base-0.2", 3)?;
    host.make_default("Base-0.3", 1)?;
    host.starts("Base-0.3 on trial")?;
    host.starts("Base-0.1")
}

#[test]
fn without_a_trial_a_layer_stops_where_it_fails() -> Result<()> {
    let mut host = Host::with(&["Base-0.2"])?;
    host.make_default("Base-0.2", 0)?;
    for _ in 0..2 {
        assert_eq!(host.environment()?, "saved_entry=Base-0.2");
        host.starts("Base-0.2")?;
    }
    Ok(())
}

#[test]
fn what_boots_once_costs_the_layer_on_trial_no_try() -> Result<()> {
    for (once, start) in [("Base-0", "Base-0"), ("Base-0.2", "Base-0.2 on trial")] {
        let mut host = Host::with(&["Base-0.2"])?;
        host.make_default("Base-0.2", 2)?;
        host.once(once)?;
        host.starts(start)?;
        host.is_tried(0, 2)?;
        host.starts("Base-0.2 on trial")?;
        host.once(once)?;
        host.starts(start)?;
        host.is_tried(1, 2)?;
        host.starts("Base-0.2 on trial")?;
        host.starts("Base-0.1")?;
    }
    Ok(())
}

#[test]
fn where_the_default_is_gone_the_first_that_has_come_up_boots() -> Result<()> {
    let mut host = Host::with(&["Base-0.2", "Base-0.3"])?;
    host.set_default("imgbased-Base-0.9")?;
    host.starts("Base-0.1")?;
    host.make_default("Base-0.1", 0)?;
    host.once("Base-0.2")?;
    host.starts("Base-0.2 on trial")?;
    host.come_up("Base-0.2")?;
    // Its entry is lost, and a verb renders the menu.
    host.remove("Base-0.1")?;
    for _ in 0..2 {
        host.starts("Base-0.2")?;
        assert_eq!(host.environment()?, "saved_entry=Base-0.1");
    }
    // Nothing but the factory state has come up.
    host.remove("Base-0.2")?;
    host.starts("Base-0")
}

#[test]
fn a_trial_falls_back_to_what_has_come_up_where_the_default_is_gone_by_then() -> Result<()> {
    let mut host = Host::with(&["Base-0.2", "Base-0.3"])?;
    host.make_default("Base-0.2", 1)?;
    host.remove("Base-0.1")?;
    host.starts("Base-0.2 on trial")?;
    host.starts("Base-0")
}

#[test]
fn without_an_environment_block_the_first_that_has_come_up_boots() -> Result<()> {
    for block in [None, Some(""), Some("lost\n")] {
        let mut host = Host::with(&["Base-0.2"])?;
        host.make_default("Base-0.2", 3)?;
        host.once("Base-0.2")?;
        let path = host.path("grub/grubenv");
        match block {
            Some(block) => fs::write(&path, block)?,
            None => fs::remove_file(&path)?,
        }
        for _ in 0..2 {
            host.starts("Base-0.1")?;
            let found = fs::read(&path).ok();
            assert_eq!(found.as_deref(), block.map(str::as_bytes));
        }
        // One that somebody picks comes up all the same, and is not the default for that.
        assert_eq!(host.pick(0)?.to_string(), "Base-0.2 on trial");
        host.come_up("Base-0.2")?;
        host.starts("Base-0.2")?;
    }
    Ok(())
}

/// GRUB reads and counts in a block of whatever size, where the number of tries has its place.
#[test]
fn an_environment_block_of_a_wrong_size_counts() -> Result<()> {
    for size in [300, 1023, 1025, 4096] {
        let mut host = Host::with(&["Base-0.2"])?;
        host.make_default("Base-0.2", 2)?;
        let path = host.path("grub/grubenv");
        let mut block = fs::read(&path)?;
        block.resize(size, b'#');
        fs::write(&path, block)?;
        for start in [
            "Base-0.2 on trial",
            "Base-0.2 on trial",
            "Base-0.1",
            "Base-0.1",
        ] {
            host.starts(start)?;
            assert_eq!(fs::read(&path)?.len(), size);
        }
    }
    Ok(())
}

#[test]
fn a_trial_whose_kernel_or_initramfs_is_lost_restarts_as_often_as_asked() -> Result<()> {
    for is_kernel in [true, false] {
        let mut host = Host::with(&["Base-0.2"])?;
        host.make_default("Base-0.2", 2)?;
        let entry = host.entry("Base-0.2")?.1;
        let lost = if is_kernel { entry.linux } else { entry.initrd };
        fs::remove_file(host.path(&lost))?;
        for tried in [1, 2] {
            host.starts("restart")?;
            host.is_tried(tried, 2)?;
        }
        host.starts("Base-0.1")?;
        assert!(host.once("Base-0.2").is_err());
        host.edit_environment(&[("next_entry", "imgbased-Base-0.2")])?;
        host.starts("restart")?;
        host.starts("Base-0.1")?;
    }
    Ok(())
}

fn refusal<T>(result: Result<T>) -> String {
    result
        .err()
        .map(|error| format!("{error:#}"))
        .unwrap_or_default()
}

#[test]
fn a_system_that_is_taken_over_boots_until_a_layer_has_come_up() -> Result<()> {
    for default in ["0", "${saved_entry}", STOCK_ID] {
        let mut host = Host::empty(Config::Mkconfig(default), &emulated)?;
        let config = host.path("grub/grub.cfg");
        let with_menu = fs::read_to_string(&config)?;
        // It was made before there was a menu.
        fs::write(&config, with_menu.replace("imgbased.cfg", "none"))?;
        host.add("Base-0")?;
        host.add("Base-0.1")?;
        host.starts("another system")?;
        let error = refusal(host.make_default("Base-0.1", 1));
        assert!(error.contains("update-grub"), "{error}");

        fs::write(&config, with_menu)?;
        host.add("Base-0.2")?;
        host.starts("another system")?;
        if default == STOCK_ID {
            let error = refusal(host.make_default("Base-0.1", 0));
            assert!(error.contains("GRUB_DEFAULT=saved"), "{error}");
            continue;
        }
        host.make_default("Base-0.2", 1)?;
        host.starts("Base-0.2 on trial")?;
        host.starts("another system")?;
        host.make_default("Base-0.1", 1)?;
        host.starts("Base-0.1 on trial")?;
        host.come_up("Base-0.1")?;
        host.starts("Base-0.1")?;
    }
    Ok(())
}

/// It stays in the menu as it was.
#[test]
fn a_default_whose_entry_no_menu_can_have_boots_all_the_same() -> Result<()> {
    let mut host = Host::with(&["Base-0.2"])?;
    let path = host.path("loader/entries/imgbased-Base-0.1.conf");
    let good = fs::read_to_string(&path)?;
    for (number, changed) in [
        good.trim_end().to_owned() + " it's\n",
        good.replace("imgbased.layer=Base-0.1", "root=/dev/sda1"),
    ]
    .into_iter()
    .enumerate()
    {
        fs::write(&path, changed)?;
        host.add(&format!("Base-0.{}", number + 3))?;
        host.starts("Base-0.1")?;
    }
    host.make_default("Base-0.3", 1)?;
    host.starts("Base-0.3 on trial")?;
    host.come_up("Base-0.3")?;
    host.starts("Base-0.3")?;
    // Mended, it is in the menu as it is.
    fs::write(&path, good.trim_end().to_owned() + " debug\n")?;
    host.make_default("Base-0.1", 0)?;
    host.render_menu()?;
    host.starts("Base-0.1")?;
    assert!(fs::read_to_string(host.path("grub/imgbased.cfg"))?.contains(" debug\n"));
    Ok(())
}

#[test]
fn a_default_that_would_not_boot_is_refused() -> Result<()> {
    let mut host = Host::with(&["Base-0.2"])?;
    let refused = |host: &Host, what: &str| -> Result<()> {
        let before = host.environment()?;
        for tries in [0, 2] {
            let error = refusal(host.make_default("Base-0.2", tries));
            ensure!(error.contains(what), "{error}");
        }
        assert_eq!(host.environment()?, before);
        Ok(())
    };
    host.customize("set superusers=\"admin\"\n")?;
    refused(&host, "superusers are set")?;
    host.starts("prompt")?;
    // What is the default may be booted by everybody, what is to be tried may not.
    host.open_entry("imgbased-Base-0.1")?;
    refused(
        &host,
        "GRUB asks for a name and a password before imgbased-Base-0.2",
    )?;
    host.starts("Base-0.1")?;
    host.open_entry("imgbased-Base-0.2")?;
    host.make_default("Base-0.2", 1)?;
    host.starts("Base-0.2 on trial")?;
    host.starts("Base-0.1")?;
    host.make_default("Base-0.1", 0)?;
    host.customize("")?;
    fs::write(
        host.path("grub/grub.cfg"),
        "set default=0\nmenuentry 'Debian' {\n",
    )?;
    refused(&host, "imgbased.cfg, so GRUB")?;
    // By its place, which is another one with each layer.
    let mut host = Host::with(&["Base-0.2"])?;
    host.edit_environment(&[("saved_entry", "0")])?;
    let error = refusal(host.make_default("Base-0.2", 2));
    ensure!(
        error.contains("the default 0 is no entry to fall back to"),
        "{error}"
    );
    host.starts("Base-0.1")
}

#[test]
fn a_default_whose_kernel_is_lost_stops_the_host() -> Result<()> {
    let mut host = Host::with(&["Base-0.2"])?;
    host.make_default("Base-0.2", 1)?;
    fs::remove_file(host.path(&host.entry("Base-0.1")?.1.linux))?;
    host.starts("Base-0.2 on trial")?;
    host.starts("nothing")?;
    // There is nothing to fall back to.
    assert!(host.make_default("Base-0.2", 1).is_err());
    assert!(host.make_default("Base-0.1", 0).is_err());
    host.make_default("Base-0.2", 0)?;
    host.starts("Base-0.2")
}

/// GRUB boots the kernel alone after ten seconds, and that stops.
#[test]
fn a_default_whose_initramfs_is_lost_boots_nothing_else() -> Result<()> {
    let mut host = Host::with(&["Base-0.2"])?;
    fs::remove_file(host.path(&host.entry("Base-0.1")?.1.initrd))?;
    match host.start()? {
        Start::Kernel(kernel) => {
            assert_eq!((kernel.layer(), &kernel.initrd), (Some("Base-0.1"), &None));
        }
        other => bail!("{other}"),
    }
    Ok(())
}

#[test]
fn what_is_picked_by_hand_boots_that_one_time() -> Result<()> {
    let mut host = Host::with(&["Base-0.2"])?;
    let picked = ["Base-0.2 on trial", "Base-0.1", "Base-0"];
    for (number, start) in picked.iter().enumerate() {
        assert_eq!(host.pick(number)?.to_string(), *start);
        assert_eq!(host.environment()?, "saved_entry=Base-0.1");
        host.starts("Base-0.1")?;
    }
    // While something is on trial, the menu has counted a try before anybody picks.
    host.make_default("Base-0.2", 2)?;
    assert_eq!(host.pick(1)?.to_string(), "Base-0.1");
    host.is_tried(1, 2)?;
    host.come_up("Base-0.1")?;
    host.starts("Base-0.2 on trial")?;
    host.starts("Base-0.1")?;
    // What cannot be read leaves the menu there.
    host.make_default("Base-0.1", 0)?;
    fs::remove_file(host.path(&host.entry("Base-0")?.1.linux))?;
    assert_eq!(host.pick(2)?, Start::Menu);
    Ok(())
}

#[test]
fn a_default_deep_in_a_long_menu_boots() -> Result<()> {
    let names: Vec<String> = (2..=40).map(|number| format!("Base-0.{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut host = Host::with(&names)?;
    host.starts("Base-0.1")?;
    host.make_default("Base-0.20", 1)?;
    host.starts("Base-0.20 on trial")?;
    host.starts("Base-0.1")?;
    assert_eq!(host.pick(39)?.to_string(), "Base-0.1");
    assert_eq!(host.pick(40)?.to_string(), "Base-0");
    Ok(())
}

#[test]
fn titles_and_options_of_images_reach_the_kernel_and_nothing_else() -> Result<()> {
    for name in [
        "Bob's \"Linux\" }",
        "$(reboot); `halt` ${default} $",
        "é\\x07 ' --id 'other' { reboot",
        "# comment\\",
        "{",
        "then fi done",
    ] {
        let mut host = Host::with(&[])?;
        fs::create_dir_all(host.root("Base-0.2").join("etc"))?;
        fs::write(
            host.root("Base-0.2").join("etc/os-release"),
            format!("PRETTY_NAME=\"{name}\"\n"),
        )?;
        host.add("Base-0.2")?;
        host.once("Base-0.2")?;
        host.starts("Base-0.2 on trial")?;
        host.starts("Base-0.1")?;
    }
    Ok(())
}

#[test]
fn options_reach_the_kernel_as_they_stand() -> Result<()> {
    for options in [
        "",
        "a=b,c:d+e@f%g~h.i_j-k",
        "x=/* grub/* \"/grub/*\" \"*\" \"hd?\" a=\"b c\"[0-9]* ] grub/[a-z]?",
        "!a ^b a^ x!=y == != -a -o -z",
        "if then else fi for in do done while until function menuentry time select",
        "\"a b\" x=\"c  d\" \"\" y=\"*?\" \"if\"",
        "~ ~root / // /// . .. ---",
        "once=1 default=2 boot=x",
        "1 0 00 % @ + , : = _",
    ] {
        let mut host = Host::with(&[])?;
        let dir = host.root("Base-0.2").join("etc/kernel");
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("cmdline"), options)?;
        host.add("Base-0.2")?;
        host.once("Base-0.2")?;
        let (_, entry) = host.entry("Base-0.2")?;
        match host.start()? {
            Start::Kernel(kernel) => assert_eq!(kernel.options, entry.options.replace('"', "")),
            other => bail!("{options}: {other}\n{}", host.describe()),
        }
    }
    Ok(())
}

#[test]
fn where_the_entry_on_trial_is_removed_the_default_boots() -> Result<()> {
    let mut host = Host::with(&["Base-0.2", "Base-0.3"])?;
    host.come_up("Base-0.3")?;
    host.make_default("Base-0.2", 2)?;
    host.starts("Base-0.2 on trial")?;
    host.remove("Base-0.2")?;
    for _ in 0..3 {
        host.starts("Base-0.1")?;
    }
    host.come_up("Base-0.1")?;
    assert_eq!(host.environment()?, "saved_entry=Base-0.1");
    Ok(())
}

#[test]
fn where_the_entry_that_boots_once_is_removed_the_default_boots() -> Result<()> {
    let mut host = Host::with(&["Base-0.2", "Base-0.3"])?;
    host.come_up("Base-0.3")?;
    host.once("Base-0.2")?;
    host.remove("Base-0.2")?;
    for _ in 0..2 {
        host.starts("Base-0.1")?;
        assert_eq!(host.environment()?, "saved_entry=Base-0.1");
    }
    Ok(())
}

#[test]
fn of_two_kernels_the_newest_boots_unless_the_other_is_the_default() -> Result<()> {
    let mut host = Host::with(&["Base-0.2"])?;
    for name in ["Base-0.1", "Base-0.2"] {
        host.install_kernel(name, "6.2")?;
        host.refresh(name)?;
    }
    assert!(host.starts_linux()?.starts_with("/imgbased/vmlinuz-6.2-"));
    host.set_default("imgbased-Base-0.1@6.1")?;
    assert!(host.starts_linux()?.starts_with("/imgbased/vmlinuz-6.1-"));
    host.come_up("Base-0.1")?;
    // A trial is of the newest, and falls back to the kernel that was the default.
    host.make_default("Base-0.2", 1)?;
    let linux = host.entry("Base-0.2")?.1.linux;
    assert_eq!(host.starts_linux()?, linux);
    assert!(host.starts_linux()?.starts_with("/imgbased/vmlinuz-6.1-"));
    // The package of that kernel is removed.
    fs::remove_dir_all(host.root("Base-0.1").join("usr/lib/modules/6.1"))?;
    host.refresh("Base-0.1")?;
    assert!(host.starts_linux()?.starts_with("/imgbased/vmlinuz-6.2-"));
    host.starts("Base-0.1")
}

#[test]
fn the_factory_state_of_a_base_can_be_the_default() -> Result<()> {
    let mut host = Host::with(&["Base-0.2"])?;
    host.make_default("Base-0", 0)?;
    host.starts("Base-0")?;
    host.make_default("Base-0.2", 1)?;
    host.starts("Base-0.2 on trial")?;
    host.starts("Base-0")?;
    // It is tried as well where it never came up.
    host.make_default("Base-0.1", 0)?;
    host.make_default("Base-0", 1)?;
    host.starts("Base-0 on trial")?;
    host.starts("Base-0.1")
}

#[test]
fn another_system_can_be_the_default() -> Result<()> {
    let mut host = Host::with(&["Base-0.2"])?;
    host.add_foreign()?;
    host.starts("Base-0.1")?;
    host.set_default(FOREIGN_ID)?;
    for _ in 0..2 {
        host.starts("another system")?;
        host.make_default("Base-0.2", 2)?;
        for tried in [1, 2] {
            host.starts("Base-0.2 on trial")?;
            assert_eq!(
                host.environment()?,
                format!("saved_entry=other trial=Base-0.2 tried={tried} tries=2")
            );
        }
    }
    host.starts("another system")
}

/// The menu of grub-mkconfig(8) has entries of its own, one of which boots where ours are lost.
#[test]
fn a_lost_menu_is_written_again_whatever_boots_in_its_place() -> Result<()> {
    for config in CONFIGS {
        let mut host = Host::configured(config, &["Base-0.2"])?;
        for default in ["Base-0.1", "Base-0.2"] {
            host.make_default(default, 0)?;
            fs::remove_file(host.path("grub/imgbased.cfg"))?;
            let lost = host.start()?;
            ensure!(lost.to_string() != default, "{config:?}: {lost}");
            host.render_menu()?;
            host.starts(default)?;
        }
        for chosen in ["Base-0", "Base-0.3 on trial"] {
            if chosen == "Base-0" {
                host.once(chosen)?;
            } else {
                host.add("Base-0.3")?;
                host.make_default("Base-0.3", 1)?;
            }
            fs::remove_file(host.path("grub/imgbased.cfg"))?;
            host.render_menu()?;
            host.starts(chosen)?;
        }
    }
    Ok(())
}

#[test]
fn a_trial_and_a_once_do_the_same_under_the_configuration_of_grub_mkconfig() -> Result<()> {
    for config in CONFIGS {
        let mut host = Host::configured(config, &["Base-0.2"])?;
        host.make_default("Base-0.2", 2)?;
        host.once("Base-0")?;
        for start in [
            "Base-0",
            "Base-0.2 on trial",
            "Base-0.2 on trial",
            "Base-0.1",
            "Base-0.1",
        ] {
            host.starts(start)?;
        }
        host.make_default("Base-0.2", 1)?;
        host.starts("Base-0.2 on trial")?;
        host.come_up("Base-0.2")?;
        host.starts("Base-0.2")?;
    }
    Ok(())
}

#[test]
fn whatever_the_state_nothing_restarts_for_ever_and_the_default_boots() -> Result<()> {
    run_chains()
}

/// Runs a chain of starts from each of `IMGBASED_STATES` random states, others each time unless
/// `IMGBASED_SEED` is set.
fn run_chains() -> Result<()> {
    let number = |name: &str| -> Result<Option<u64>> {
        let text = env::var(name).ok();
        text.map(|text| text.parse().context(name.to_owned()))
            .transpose()
    };
    let seed = match number("IMGBASED_SEED")? {
        Some(seed) => seed,
        None => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
    };
    let states = number("IMGBASED_STATES")?.unwrap_or(STATES);
    eprintln!("IMGBASED_SEED={seed} IMGBASED_STATES={states}");
    let next = AtomicU64::new(0);
    let work = || -> Result<usize> {
        let mut starts = 0;
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= states {
                return Ok(starts);
            }
            // Each by itself: the seed and the number are enough to have it again.
            let mut rng = Rng::with_seed(seed.wrapping_add(index));
            let state = State::random(&mut rng, &CONFIGS);
            let again = || {
                format!(
                    "IMGBASED_SEED={} IMGBASED_STATES=1",
                    seed.wrapping_add(index)
                )
            };
            let checked = state.check(&GROUND).with_context(again);
            if checked.is_err() {
                // The other worker has seen enough as well.
                next.store(states, Ordering::Relaxed);
            }
            starts += checked?;
        }
    };
    let starts: usize = thread::scope(|scope| {
        let workers = [scope.spawn(work), scope.spawn(work)];
        let results = workers.map(|worker| worker.join().expect("a worker returns its result"));
        results.into_iter().sum::<Result<usize>>()
    })?;
    eprintln!("{starts} starts");
    Ok(())
}

#[test]
fn a_new_kernel_is_tried_and_the_old_one_boots_until_it_has_come_up() -> Result<()> {
    for succeeds in [true, false] {
        let mut host = Host::with(&["Base-0.2"])?;
        let old = host.starts_linux()?;
        assert!(host.update("Base-0.1", "6.2")?);
        for _ in 0..3 {
            let kernel = host.starts_kernel()?;
            assert_eq!((kernel.version(), kernel.is_trial()), ("6.2", true));
        }
        if succeeds {
            let kernel = Kernel {
                linux: host.boot.entries_of(&"Base-0.1".parse()?)?[1].linux.clone(),
                initrd: None,
                options: "imgbased.trial".to_owned(),
            };
            host.come_up_with("Base-0.1", &kernel)?;
        }
        for _ in 0..2 {
            let kernel = host.starts_kernel()?;
            assert_eq!((kernel.linux == old, kernel.is_trial()), (!succeeds, false));
            host.come_up_with("Base-0.1", &kernel)?;
            assert_eq!(host.environment()?, "saved_entry=Base-0.1");
        }
        // What was tried in vain is picked by hand.
        let entries = host.boot.entries_of(&"Base-0.1".parse()?)?;
        assert_eq!(entries[1].is_trial(), !succeeds);
    }
    Ok(())
}

#[test]
fn a_new_kernel_waits_for_another_trial_and_for_a_layer_that_is_not_the_default() -> Result<()> {
    let mut host = Host::with(&["Base-0.2"])?;
    host.make_default("Base-0.2", 2)?;
    assert!(!host.update("Base-0.1", "6.2")?);
    for _ in 0..2 {
        host.starts("Base-0.2 on trial")?;
    }
    assert_eq!(host.starts_kernel()?.version(), "6.1");
    host.come_up("Base-0.1")?;
    host.come_up("Base-0.2")?;
    host.make_default("Base-0.2", 0)?;
    assert!(!host.update("Base-0.1", "6.3")?);
    host.starts("Base-0.2")
}
