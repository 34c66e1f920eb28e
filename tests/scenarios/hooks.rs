//! Hooks see what comes and goes, and can keep it from that; what programs look for is in the journal.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::claims::{is_clean, is_refused};
use crate::vm::guest::{script, script_with};
use crate::vm::verbs::interrupted;
use crate::vm::{Host, Loader, Vm};

scenarios![
    ;
    turns:
    hooks_run_in_order_and_look_at_the_host,
    a_hook_keeps_a_change_away_and_is_ended_when_it_hangs,
    what_became_of_a_trial_is_in_the_journal;
    long:
    hooks_of_an_update_run_before_and_after_it_is_done,
];

/// For copying images, under software emulation.
const SLOW: Duration = Duration::from_secs(900);

const CAME_UP: &str = "d698788fe780952843b51d1bebe630a8";
const HOOK_FAILED: &str = "2d432aaa7c37aaad2419b5e96ba6c006";
const HOOK_SAID: &str = "d8bfe5a1c6d0503107d96f44a5a02d4a";
const TRIAL_FAILED: &str = "95b35ad12987bd22ad0a5303205c8b31";

/// Those of `tests/guest/make-hooks.sh` that run.
const RUN: [&str; 5] = [
    "/etc/imgbased/hooks.d/10-first",
    "/usr/lib/imgbased/hooks.d/40-roots",
    "/usr/lib/imgbased/hooks.d/50-helper",
    "/usr/lib/imgbased/hooks.d/60-mode",
    "/etc/imgbased/hooks.d/70-last",
];

fn hooks_run_in_order_and_look_at_the_host() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "hooks")?;
    vm.ok(&script("make-hooks")?)?;
    let planned = vm.ok("imgbased-helper --dry-run layer add Base-0")?;
    ensure!(
        planned.contains("env IMGBASED_EVENT=new-layer-added "),
        "{planned}"
    );
    assert_eq!(vm.ok("ls /root/hooks 2>/dev/null || true")?, "");

    let said = vm.ok("imgbased-helper layer add Base-0")?;
    let refused = "30-open is not run: others than root can write to ";
    ensure!(
        said.contains(refused) && said.ends_with("Base-0.3"),
        "{said}"
    );
    assert_eq!(
        told(&mut vm)?,
        all_with(&["new-layer-added HostVG/Base-0 HostVG/Base-0.3"])
    );
    let environment = vm.ok("cat /root/environment")?;
    assert_eq!(
        environment.lines().map(str::trim).collect::<Vec<_>>(),
        [
            "IMGBASED_EVENT=new-layer-added",
            "IMGBASED_NEW_BASE=Base-0",
            "IMGBASED_NEW_LAYER=Base-0.3",
            "IMGBASED_NEW_ROOT=/run/imgbased/mounts/Base-0.3",
            "IMGBASED_OLD_BASE=Base-0",
            "IMGBASED_OLD_ROOT=/run/imgbased/mounts/Base-0",
        ]
    );
    let look = script_with("look-into", &["Base-0.3", "cat etc/hook"])?;
    assert_eq!(vm.ok(&look)?, "seen");
    ensure!(vm.ok("cat /root/status")?.contains("Base-0.1"));
    assert_eq!(vm.ok("cat /root/diff")?, "A ...... /etc/hook");
    let refused = vm.ok("cat /root/refused")?;
    ensure!(
        refused.contains("boot once: a hook of process "),
        "{refused}"
    );
    ensure!(in_journal(&mut vm, HOOK_SAID)?.contains("hook /etc/imgbased/hooks.d/10-first: first"));

    vm.ok(&script("make-extra")?)?;
    vm.ok("imgbased-helper base add --name Extra /root/Extra.img")?;
    vm.ok("imgbased-helper layer remove Base-0.3")?;
    vm.ok("imgbased-helper base remove --yes Extra")?;
    vm.ok("imgbased-helper boot bless")?;
    let events = [
        "new-base-with-tree-added HostVG/Extra",
        "pre-layer-removed HostVG/Base-0.3",
        "layer-removed HostVG/Base-0.3",
        "pre-base-removed HostVG/Extra",
        "base-removed HostVG/Extra",
        "post-bless HostVG/Base-0.1",
    ];
    assert_eq!(told(&mut vm)?, all_with(&events));
    is_clean(&mut vm)
}

fn a_hook_keeps_a_change_away_and_is_ended_when_it_hangs() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "hooks-veto")?;
    vm.ok("imgbased-helper layer add Base-0")?;
    vm.ok(&script("make-hooks")?)?;
    let before = state(&mut vm)?;
    mode(&mut vm, "new-layer-added veto")?;
    let why =
        "60-mode failed at new-layer-added, so nothing is changed: not today (exit status: 7)";
    is_refused(&mut vm, "layer add Base-0", why)?;
    assert_eq!(told(&mut vm)?.len(), RUN.len() - 1);
    assert_eq!(state(&mut vm)?, before);
    ensure!(in_journal(&mut vm, HOOK_FAILED)?.contains("not today"));

    mode(&mut vm, "pre-layer-removed veto")?;
    let why = "60-mode failed at pre-layer-removed, so nothing is changed";
    is_refused(&mut vm, "layer remove Base-0.3", why)?;
    assert_eq!(state(&mut vm)?, before);

    mode(&mut vm, "new-layer-added sleep")?;
    let add = interrupted("IMGBASED_TIME_LIMIT=2", "imgbased-helper layer add Base-0");
    let got = vm.run(&add)?;
    ensure!(
        got.status == 1 && got.text.contains("it was ended after 2 s"),
        "{got:?}"
    );
    assert_eq!(
        vm.ok("grep -ls 424[3] /proc/[0-9]*/cmdline || true")?,
        "",
        "nothing of it is left"
    );
    assert_eq!(state(&mut vm)?, before);

    // What has come true stays so.
    mode(&mut vm, "layer-removed veto")?;
    let said = vm.ok("imgbased-helper layer remove Base-0.3")?;
    ensure!(
        said.contains("60-mode failed at layer-removed: not today"),
        "{said}"
    );
    let layers = vm.ok("imgbased-helper layer list")?;
    ensure!(!layers.contains("Base-0.3"), "{layers}");
    is_clean(&mut vm)
}

fn hooks_of_an_update_run_before_and_after_it_is_done() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "hooks-update")?;
    vm.ok(&script("make-hooks")?)?;
    vm.ok(&script("make-next")?)?;
    let before = state(&mut vm)?;
    let before = without_menu(&before);
    mode(&mut vm, "post-merge veto")?;
    let got = vm.run_for("imgbased-helper update /mnt/next", SLOW)?;
    ensure!(
        got.status == 1
            && got
                .text
                .contains("failed at post-merge, so nothing is changed"),
        "{got:?}"
    );
    assert_eq!(without_menu(&state(&mut vm)?), before);

    vm.ok("rm /root/hook-mode /root/hooks")?;
    vm.ok_for("imgbased-helper update /mnt/next", SLOW)?;
    let events = [
        "new-base-with-tree-added HostVG/Base-1",
        "new-layer-added HostVG/Base-1 HostVG/Base-1.1",
        "post-merge HostVG/Base-0.1 HostVG/Base-1.1",
        "os-upgraded HostVG/Base-0.1 HostVG/Base-1.1",
        "post-commit HostVG/Base-0.1 HostVG/Base-1.1",
    ];
    assert_eq!(told(&mut vm)?, all_with(&events));
    // What was edited since goes there as at shutdown.
    vm.ok("echo later >/etc/later && imgbased-helper update --at-shutdown")?;
    assert_eq!(told(&mut vm)?, all_with(&events[2..3]));
    let look = script_with("look-into", &["Base-1.1", "cat etc/later; ls -A"])?;
    let seen = vm.ok(&look)?;
    ensure!(
        seen.starts_with("later") && !seen.contains("imgbased-again"),
        "{seen}"
    );
    is_clean(&mut vm)
}

/// Without the time of the menu, which is written again when it is made what it was.
fn without_menu(state: &str) -> Vec<&str> {
    let lines = state.lines();
    lines
        .filter(|line| !line.starts_with("grub/imgbased.cfg "))
        .collect()
}

fn what_became_of_a_trial_is_in_the_journal() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "messages")?;
    vm.ok("imgbased-helper boot default Base-0.2 && imgbased-helper boot bless Base-0.2")?;
    let came_up = in_journal(&mut vm, &format!("{CAME_UP} IMGBASED_LAYER=Base-0.2"))?;
    ensure!(
        came_up.contains("Base-0.2 has come up with Linux "),
        "{came_up}"
    );
    vm.ok("imgbased-helper layer add Base-0")?;
    vm.ok("imgbased-helper boot default --tries 2 Base-0.3")?;
    // As GRUB leaves it.
    vm.ok("grub-editenv /boot/grub/grubenv set imgbased_tried=2")?;
    vm.ok("imgbased-helper boot bless")?;
    let failed = format!("{TRIAL_FAILED} IMGBASED_LAYER=Base-0.3 IMGBASED_TRIES=2");
    let failed = in_journal(&mut vm, &failed)?;
    ensure!(
        failed.contains("Base-0.3 did not come up in 2 tries"),
        "{failed}"
    );
    is_clean(&mut vm)
}

/// What the hooks have told since this was asked for.
fn told(vm: &mut Vm) -> Result<Vec<String>> {
    let told = vm.ok("cat /root/hooks && rm /root/hooks")?;
    Ok(told.lines().map(|line| line.trim().to_owned()).collect())
}

/// What all hooks tell of these events.
fn all_with(events: &[&str]) -> Vec<String> {
    let lines = events
        .iter()
        .flat_map(|event| RUN.iter().map(move |hook| format!("{hook} {event}")));
    lines.collect()
}

/// Has a hook fail at an event.
fn mode(vm: &mut Vm, mode: &str) -> Result<()> {
    vm.ok(&format!("echo {mode} >/root/hook-mode")).map(drop)
}

fn state(vm: &mut Vm) -> Result<String> {
    vm.ok(&script("all-state")?)
}

/// The messages with this id, and other fields that may follow it.
fn in_journal(vm: &mut Vm, id: &str) -> Result<String> {
    vm.ok(&format!(
        "journalctl --sync && journalctl --no-pager --output cat MESSAGE_ID={id}"
    ))
}
