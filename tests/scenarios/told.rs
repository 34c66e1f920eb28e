//! What programs and people are told of a host: documents, the journal, metrics, and what a terminal shows.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, anyhow, bail, ensure};

use crate::claims::is_clean;
use crate::schemas;
use crate::vm::guest::script;
use crate::vm::{Host, Loader, Vm, readme};

/// For copying images, under software emulation.
const SLOW: Duration = Duration::from_secs(900);

scenarios![
    ;
    long:
    each_document_is_as_its_schema_says,
    the_journal_metrics_and_a_terminal_tell_of_the_host,
    the_readme_shows_what_a_terminal_shows,
];

/// The documents, and what writes them: on a host that the scripts of the tests of updates have changed, and then on one
/// that waits for an update.
const DOCUMENTS: [(&str, &str); 15] = [
    ("layout", "layout"),
    ("status", "status"),
    ("status", "status --format json"),
    ("base-list", "base list"),
    ("base-verify", "base verify"),
    (
        "base-find",
        "base find $(sha256sum </usr/bin/env | head -c 64)",
    ),
    ("layer-list", "layer list"),
    ("boot-list", "boot list"),
    ("volume-list", "volume list"),
    ("diff", "diff --content --packages --path /etc"),
    ("persist-preview", "persist preview"),
    ("persist-conflicts", "persist conflicts"),
    ("persist-list", "persist list --matches"),
    ("check", "check"),
    ("image-check", "image check /mnt/next"),
];

/// Claims that a command writes such a document.
fn writes(vm: &mut Vm, name: &str, arguments: &str) -> Result<()> {
    // Progress is not a part of it.
    let command = format!("imgbased-helper --json {arguments} 2>/dev/null");
    let got = vm.run_for(&command, SLOW)?;
    // The second says that something was found.
    ensure!([0, 3].contains(&got.status), "{arguments}: {got:?}");
    let document = serde_json::from_str(&got.text)
        .map_err(|error| anyhow!("{arguments}: {error}: {}", got.text))?;
    schemas::check(name, &document).map_err(|error| anyhow!("{arguments}: {error}\n{document:#}"))
}

fn each_document_is_as_its_schema_says() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "documents")?;
    vm.ok(&script("change-host")?)?;
    vm.ok(&script("make-next")?)?;
    vm.ok("imgbased-helper persist add /opt/own '/srv/*.conf'")?;
    for (name, arguments) in DOCUMENTS {
        writes(&mut vm, name, arguments)?;
    }
    writes(&mut vm, "update-check", "update --check /mnt/next")?;
    writes(
        &mut vm,
        "update",
        "update --progress-fd 3 /mnt/next 3>/run/progress",
    )?;
    for line in vm.ok("tail -n 5 /run/progress")?.lines() {
        let document = serde_json::from_str(line)?;
        schemas::check("progress", &document).map_err(|error| anyhow!("{line}: {error}"))?;
    }
    vm.ok(&script("damage-boot")?)?;
    for (name, arguments) in DOCUMENTS {
        writes(&mut vm, name, arguments)?;
    }
    vm.run("imgbased-helper check --repair")?;
    writes(&mut vm, "rollback", "rollback")?;
    let beside = ["progress", "rollback", "update", "update-check"];
    let written = DOCUMENTS.iter().map(|(name, _)| *name).chain(beside);
    let written: BTreeSet<String> = written.map(str::to_owned).collect();
    assert_eq!(schemas::names(), Vec::from_iter(written));
    // Where others find them.
    vm.ok("test -s /usr/share/imgbased-helper/schemas/status.json")?;
    Ok(())
}

fn the_journal_metrics_and_a_terminal_tell_of_the_host() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "told-of")?;
    tells_the_journal(&mut vm)?;
    tells_node_exporter(&mut vm)?;
    tells_a_terminal(&mut vm)?;
    is_clean(&mut vm)
}

fn tells_the_journal(vm: &mut Vm) -> Result<()> {
    for (command, id, fields, catalog) in [
        (
            "layer add",
            "f856e2aeeed16b993c842835962ee9b5",
            "IMGBASED_LAYER=Base-0.3 IMGBASED_BASE=Base-0",
            "Base-0.3 is a new layer of Base-0.",
        ),
        (
            "boot default --tries 0 Base-0.3",
            "12e9601a2d6a558f74ea6f06860af0e6",
            "IMGBASED_LAYER=Base-0.3 IMGBASED_BASE=Base-0",
            "`imgbased-helper boot default` was run.",
        ),
        (
            "rollback --to Base-0.1",
            "8a8391c4a0f7d4bae9b0fbc4aa26c06a",
            "IMGBASED_LAYER=Base-0.1 IMGBASED_BASE=Base-0",
            "`imgbased-helper rollback` was run.",
        ),
        (
            "layer remove Base-0.3",
            "131a058f28f25720e8931f6b19fad41f",
            "IMGBASED_LAYER=Base-0.3 IMGBASED_BASE=Base-0",
            "The layer Base-0.3 of Base-0 is gone",
        ),
    ] {
        let find = format!(
            "journalctl --sync && journalctl --no-pager --catalog MESSAGE_ID={id} {fields} 2>&1 || true"
        );
        vm.ok(&format!("imgbased-helper --dry-run {command}"))?;
        let before = vm.ok(&find)?;
        ensure!(!before.contains(catalog), "{command}: {before}");
        vm.ok(&format!("imgbased-helper {command}"))?;
        let after = vm.ok(&find)?;
        ensure!(after.contains(catalog), "{command}: {after}");
    }
    Ok(())
}

fn tells_node_exporter(vm: &mut Vm) -> Result<()> {
    const DIRECTORY: &str = "/var/lib/prometheus/node-exporter";
    vm.ok("! systemctl is-enabled imgbased-metrics.timer")?;
    // Somebody else's link is not followed.
    vm.ok(&format!(
        "mkdir -p {DIRECTORY} && ln -s /root/followed {DIRECTORY}/.imgbased.new"
    ))?;
    for _ in 0..2 {
        vm.ok("systemctl start imgbased-metrics.service")?;
        assert_eq!(vm.ok(&format!("ls -A {DIRECTORY}"))?, "imgbased.prom");
        vm.ok("test ! -e /root/followed")?;
    }
    let metrics = vm.ok(&format!("cat {DIRECTORY}/imgbased.prom"))?;
    for line in [
        "imgbased_bases 1",
        "imgbased_layers 2",
        "imgbased_default_is_booted 1",
        "imgbased_problems 0",
        "# TYPE imgbased_pool_data_used_ratio gauge",
        "imgbased_filesystem_used_ratio{mountpoint=\"/boot\"} 0.",
    ] {
        ensure!(metrics.contains(line), "{line}: {metrics}");
    }
    vm.ok(&format!("rm -r {DIRECTORY}")).map(drop)
}

fn tells_a_terminal(vm: &mut Vm) -> Result<()> {
    // The serial line is a terminal.
    const COLOURED: &str = "layer, \x1b[32mbooted\x1b[0m, \x1b[1mdefault\x1b[0m";
    const PLAIN: &str = "layer, booted, default";
    for (command, wanted) in [
        ("TERM=vt220 imgbased-helper layout", COLOURED),
        ("TERM=dumb imgbased-helper layout", PLAIN),
        ("TERM=vt220 NO_COLOR=1 imgbased-helper layout", PLAIN),
        ("TERM=vt220 imgbased-helper layout | cat", PLAIN),
        ("TERM=vt220 imgbased-helper layout --color never", PLAIN),
        ("imgbased-helper layout --color always | cat", COLOURED),
    ] {
        let shown = vm.ok(command)?;
        ensure!(shown.contains(wanted), "{command}: {shown:?}");
    }
    let shown = vm.ok("imgbased-helper")?;
    ensure!(
        shown.contains("Booted      Base-0.1") && shown.contains("Commands to go on with:"),
        "{shown}"
    );
    let none = vm.ok("imgbased-helper --vg Other")?;
    ensure!(
        none.contains("There is no volume group Other here"),
        "{none}"
    );
    // What nothing can be counted of shows how long it takes, and is gone when it is done.
    vm.ok(
        "mkdir -p /etc/imgbased/hooks.d && printf '#!/bin/sh\\nsleep 5\\n' >/etc/imgbased/hooks.d/10-slow && \
         chmod 755 /etc/imgbased/hooks.d/10-slow",
    )?;
    let shown = vm.ok("TERM=vt220 imgbased-helper layer add")?;
    ensure!(
        shown.contains("/10-slow ") && shown.contains("  3 s\x1b[K"),
        "{shown:?}"
    );
    vm.ok("rm /etc/imgbased/hooks.d/10-slow").map(drop)
}

/// The commands of the README's section on the terminal, and what becomes of the host before each.
fn before(command: &str) -> Result<Vec<String>> {
    Ok(match command {
        "imgbased-helper status" | "imgbased-helper layout" => Vec::new(),
        "imgbased-helper check" => vec![
            "lvm lvchange -qq --permission rw HostVG/Base-0".to_owned(),
            "rm /boot/loader/entries/imgbased-Base-0.2.conf".to_owned(),
        ],
        "imgbased-helper layer remove Base-0.1" => {
            vec!["imgbased-helper check --repair".to_owned()]
        }
        "imgbased-helper update /mnt/next" => {
            vec![script("change-host")?, script("make-next")?]
        }
        other => bail!("nobody knows what `{other}` is run on"),
    })
}

fn the_readme_shows_what_a_terminal_shows() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "terminal")?;
    let shown = readme::shown("## At a terminal")?;
    assert_eq!(shown.len(), 5);
    let (mut session, mut is_same) = (String::new(), true);
    for (command, wanted) in &shown {
        for step in before(command)? {
            vm.ok_for(&step, SLOW)?;
        }
        let got = vm.run_for(command, SLOW)?.text;
        is_same &= without_numbers(&got) == without_numbers(wanted);
        session += &format!("# {command}\n{got}\n");
    }
    ensure!(is_same, "a terminal shows:\n{session}");
    Ok(())
}

/// A text without what is another one on each host: numbers and their units, versions of kernels, bars, and how wide
/// columns are. Trees are drawn as where there is no UTF-8.
fn without_numbers(text: &str) -> Vec<String> {
    let text = text
        .replace("├─", "|-")
        .replace("└─", "`-")
        .replace('│', "|");
    // Progress is gone when its work is done.
    let lines = text.lines().filter(|line| !line.ends_with("MiB/s"));
    let lines = lines.filter(|line| !line.ends_with(" left"));
    let lines = lines.map(|line| {
        // How long the parts of a boot took, and which there were.
        let line = line.split(" ms (").next().unwrap_or_default();
        let words = line.split_whitespace().filter(|word| {
            let is_of_bar = |c| ['[', '=', ']'].contains(&c);
            !word.chars().all(is_of_bar)
        });
        let words = words.map(|word| {
            let core = word.trim_matches(['(', ')', ',', ';']);
            let is_number = core.starts_with(|c: char| c.is_ascii_digit())
                && core.chars().all(|c| c.is_ascii_digit() || c == '.');
            let is_unit = ["B", "KiB", "MiB", "GiB", "TiB"].contains(&core);
            if is_number || core.ends_with("-amd64") {
                word.replace(core, "N")
            } else if is_unit {
                word.replace(core, "B")
            } else {
                word.to_owned()
            }
        });
        words.collect::<Vec<String>>().join(" ")
    });
    lines.collect()
}
