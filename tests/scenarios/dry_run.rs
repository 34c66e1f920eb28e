//! A dry run prints what a verb does: pasted into a shell, its commands leave the host as the verb does.

use anyhow::{Context, Result, ensure};

use crate::vm::guest::{script, script_with};
use crate::vm::verbs::{
    ADD_BASE, ADD_BASE_BY_CONTENT, ADD_BASE_OF_FILES, ADD_LAYER, ADD_LAYER_OF_EXTRA,
    ADD_LAYER_OF_LAYER, ADOPT, BLESS, COLLECT, MAKE_GROUP, REMOVE_BASE, REMOVE_LAYER, ROLL_BACK,
    START_TRIAL, SWITCH_DEFAULT, TRY, Verb,
};
use crate::vm::{Host, Loader, Saved, Vm, say};

scenarios![
    ;
    long:
    a_pasted_dry_run_of_a_layer_does_what_the_verb_does,
    a_pasted_dry_run_of_what_boots_does_what_the_verb_does,
    a_pasted_dry_run_of_a_base_or_group_does_what_the_verb_does,
    a_pasted_dry_run_of_a_repair_does_what_the_verb_does,
    a_dry_run_that_is_ended_leaves_nothing_active,
    a_dry_run_leaves_an_initramfs_that_is_made_to_the_helper,
    a_pasted_dry_run_of_a_volume_does_what_the_verb_does,
];

/// A verb, and what comes before it.
struct Case {
    name: &'static str,
    vg: &'static str,
    prepare: String,
    run: &'static str,
}

impl Case {
    fn of(verb: &Verb) -> Result<Self> {
        Ok(Self {
            name: verb.name,
            vg: verb.vg,
            prepare: verb.prepare()?,
            run: verb.run,
        })
    }

    /// A verb of the host's own group.
    fn new(name: &'static str, prepare: &str, run: &'static str) -> Self {
        Self {
            name,
            vg: "HostVG",
            prepare: prepare.to_owned(),
            run,
        }
    }
}

fn a_pasted_dry_run_of_a_layer_does_what_the_verb_does() -> Result<()> {
    let verbs = [
        ADD_LAYER,
        ADD_LAYER_OF_LAYER,
        ADD_LAYER_OF_EXTRA,
        REMOVE_LAYER,
    ];
    let mut cases = verbs.iter().map(Case::of).collect::<Result<Vec<_>>>()?;
    cases.push(Case::new(
        "layer-add-of-what-runs",
        "true",
        "imgbased-helper layer add Base-0.1",
    ));
    cases.push(Case::new(
        "layer-add-with-hooks",
        // A verb in a hook is refused while another one runs. What is pasted runs without the lock.
        &format!(
            "{}\nsed -i '/boot once/d' /usr/lib/imgbased/hooks.d/50-helper",
            script("make-hooks")?
        ),
        "imgbased-helper layer add Base-0",
    ));
    compare("dry-layer", &cases)
}

fn a_pasted_dry_run_of_what_boots_does_what_the_verb_does() -> Result<()> {
    let verbs = [TRY, START_TRIAL, SWITCH_DEFAULT, BLESS, ROLL_BACK];
    let mut cases = verbs.iter().map(Case::of).collect::<Result<Vec<_>>>()?;
    cases.push(Case::new(
        "boot-refresh",
        "echo 'console=ttyS0,115200 mitigations=off quiet' >/etc/kernel/cmdline",
        "imgbased-helper boot refresh",
    ));
    cases.push(Case::new(
        "boot-refresh-of-another",
        "rm /boot/loader/entries/imgbased-Base-0.2.conf",
        "imgbased-helper boot refresh Base-0.2",
    ));
    compare("dry-boot", &cases)
}

fn a_pasted_dry_run_of_a_base_or_group_does_what_the_verb_does() -> Result<()> {
    let verbs = [
        ADD_BASE,
        ADD_BASE_OF_FILES,
        ADD_BASE_BY_CONTENT,
        REMOVE_BASE,
        COLLECT,
        MAKE_GROUP,
        ADOPT,
    ];
    let cases = verbs.iter().map(Case::of).collect::<Result<Vec<_>>>()?;
    compare("dry-base", &cases)
}

fn a_pasted_dry_run_of_a_repair_does_what_the_verb_does() -> Result<()> {
    let cases = [
        Case::new(
            "check",
            "lvm lvchange -q --permission rw HostVG/Base-0; rm /boot/loader/entries/imgbased-Base-0.2.conf \
             /boot/grub/imgbased.cfg; echo x >/boot/imgbased/vmlinuz-1-0123456789abcdef",
            "imgbased-helper check --repair",
        ),
        Case::new(
            "boot-repair",
            &script("damage-boot")?,
            "imgbased-helper boot repair",
        ),
        Case {
            vg: "Renamed",
            ..Case::new(
                "renamed",
                "lvm vgrename -q HostVG Renamed",
                "imgbased-helper --vg Renamed check --repair",
            )
        },
    ];
    compare("dry-repair", &cases)
}

fn a_dry_run_that_is_ended_leaves_nothing_active() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "dry-ended")?;
    let before = vm.ok(&script("all-state")?)?;
    for verb in ["boot refresh Base-0.2", "layer add Base-0.2"] {
        let got = vm.run(&script_with("interrupt-dry-run", &[verb])?)?;
        ensure!(
            got.status == 1 && got.text.contains("interrupted"),
            "{verb}: {got:?}"
        );
        assert_eq!(vm.ok(&script("all-state")?)?, before, "{verb}");
    }
    Ok(())
}

fn a_dry_run_leaves_an_initramfs_that_is_made_to_the_helper() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "dry-initramfs")?;
    vm.ok(&script_with("spoil-initramfs", &["Base-0.2"])?)?;
    let before = vm.ok(&script("all-state")?)?;
    for (verb, layer) in [
        ("boot refresh Base-0.2", "Base-0.2"),
        ("layer add Base-0.2", "Base-0.3"),
    ] {
        let plan = vm.ok(&format!("imgbased-helper --dry-run {verb} 2>/dev/null"))?;
        let last = plan.lines().last().unwrap_or_default();
        assert_eq!(
            last,
            format!("imgbased-helper --vg HostVG boot refresh {layer}")
        );
        for word in ["sandbox", "install", "cat >"] {
            ensure!(!plan.contains(word), "{plan}");
        }
        assert_eq!(vm.ok(&script("all-state")?)?, before, "{verb}");
    }
    Ok(())
}

fn a_pasted_dry_run_of_a_volume_does_what_the_verb_does() -> Result<()> {
    let add = "mkdir -p /srv/data; echo text >/srv/data/file";
    let added = format!("{add}; imgbased-helper volume add /srv/data --size 100M");
    let cases = [
        Case::new(
            "volume-add",
            add,
            "imgbased-helper volume add /srv/data --size 100M",
        ),
        Case::new(
            "volume-add-busy",
            "true",
            "imgbased-helper volume add /var --size 1G 2>/dev/null",
        ),
        Case::new(
            "volume-grow",
            &added,
            "imgbased-helper volume grow /srv/data 200M",
        ),
        Case::new(
            "volume-remove",
            &added,
            "imgbased-helper volume remove /srv/data",
        ),
        Case::new(
            "volume-delete",
            &added,
            "imgbased-helper volume remove /srv/data --delete",
        ),
    ];
    compare("dry-volume", &cases)
}

/// Runs each verb on a host, and pastes its dry run into a shell on the same host. Claims that both leave the same.
fn compare(name: &str, cases: &[Case]) -> Result<()> {
    let (disk, mut vm) = Host::running(Loader::Grub, name)?;
    vm.ok(&script("make-extra")?)?;
    vm.ok(&script("own-root-lines")?)?;
    let host = Saved::of(disk, vm)?;
    let mut wrong = Vec::new();
    for case in cases {
        let result = compare_one(&host, name, case).with_context(|| case.run);
        wrong.extend(result.err().map(|error| format!("{error:#}")));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    Ok(())
}

fn compare_one(host: &Saved, name: &str, case: &Case) -> Result<()> {
    let disk = host.disk(&format!("{name}-{}", case.name))?;
    let mut vm = host.again(&disk)?;
    vm.ok(&case.prepare)?;
    vm.ok("udevadm settle; sync")?;
    let ready = Saved::of(disk, vm)?;
    let disk = host.disk(&format!("{name}-again"))?;

    let mut vm = ready.again(&disk)?;
    let before = state(&mut vm, case, "")?;
    vm.ok(case.run)?;
    ensure!(state(&mut vm, case, "")? != before, "it changes nothing");
    let done = state(&mut vm, case, "fstab")?;
    drop(vm);

    let mut vm = ready.again(&disk)?;
    let plan = case
        .run
        .replace("imgbased-helper", "imgbased-helper --dry-run");
    vm.ok(&format!("{plan} >/root/plan"))?;
    let after = state(&mut vm, case, "")?;
    ensure!(after == before, "a dry run changed something: {after}");
    let pasted = vm.run("sh -e /root/plan")?;
    let plan = vm.ok("cat /root/plan")?;
    ensure!(pasted.status == 0, "{pasted:?}\n{plan}");
    let left = state(&mut vm, case, "fstab")?;
    say(&format!("{}: {} lines", case.run, plan.lines().count()));
    ensure!(left == done, "{}\n{plan}", differences(&done, &left));
    Ok(())
}

fn state(vm: &mut Vm, case: &Case, more: &str) -> Result<String> {
    vm.ok(&script_with("compared-state", &[case.vg, more])?)
}

/// The lines that only one of two texts has.
fn differences(wanted: &str, found: &str) -> String {
    let lacking = wanted
        .lines()
        .filter(|line| !found.lines().any(|other| other == *line));
    let more = found
        .lines()
        .filter(|line| !wanted.lines().any(|other| other == *line));
    let lacking = lacking.map(|line| format!("- {line}\n"));
    lacking
        .chain(more.map(|line| format!("+ {line}\n")))
        .collect()
}
