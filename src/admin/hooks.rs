//! Hooks: programs of administrators and packages that a command runs when something has come or is about to go.
//! Directory, events and arguments are those of imgbased. Its first versions gave mounted roots as arguments; those
//! are in the environment here.
//!
//! A hook that runs before the commit can keep the host as it is: when it fails, the command does, and undoes what it
//! has begun. What a later one says changes nothing.
//!
//! The lock is held while hooks run, so that they see a host that does not change. It does not lock a hook out: what
//! only shows the host takes no lock, and what changes it is refused at once, since the lock tells that its holder
//! waits for the hook (`sys/lock.rs`). Without the lock, two commands would be in the middle of a change of the same
//! host, and a hook of `layer add` that adds a layer would call itself.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use nix::unistd::Uid;

use super::filesystem::{Filesystem, mount_point};
use super::roots::{self, Tree};
use super::{Context, view};
use crate::model::layout::{Group, Role};
use crate::model::name::LvName;
use crate::sys::cmd::Cmd;
use crate::sys::files::directory;
use crate::sys::journal::{self, HOOK_FAILED, HOOK_SAID};
use crate::sys::limited;
use crate::sys::progress::Waiting;
use crate::sys::transaction::{Transaction, Writer};

/// A file in the first is there instead of one of the same name in the second.
const DIRECTORIES: [&str; 2] = ["/etc/imgbased/hooks.d", "/usr/lib/imgbased/hooks.d"];
/// How long a hook may run, in seconds. Who waits for the lock meanwhile has more time for each.
const TIME_LIMIT: u32 = 90;
/// What editors and packages call what they leave beside a file that they replace.
const LEFT_BEHIND: [&str; 8] = [
    "~",
    ".dpkg-dist",
    ".dpkg-new",
    ".dpkg-old",
    ".dpkg-tmp",
    ".rpmnew",
    ".rpmorig",
    ".rpmsave",
];

/// What hooks are told. What of the names and roots there is gets into the environment.
#[derive(Default)]
pub struct Event {
    pub name: &'static str,
    /// Volumes, as `GROUP/VOLUME`, and the path of one that is mounted there.
    pub args: Vec<String>,
    pub old_layer: Option<LvName>,
    pub new_layer: Option<LvName>,
    pub old_base: Option<LvName>,
    pub new_base: Option<LvName>,
    /// Where the root of the old one is mounted.
    pub old_root: Option<PathBuf>,
    pub new_root: Option<PathBuf>,
}

/// Has the hooks of an event run that has come true. What fails is told, and the others run all the same.
pub fn after(writer: &Writer, event: &Event) {
    let hooks = load().unwrap_or_else(|error| {
        log::warn!("no hook is run at {}: {error:#}", event.name);
        Vec::new()
    });
    tell(writer, &hooks, event);
}

/// Has hooks run at an event that nothing takes back.
fn tell(writer: &Writer, hooks: &[PathBuf], event: &Event) {
    for hook in hooks {
        // Where such a line of a dry run fails, the shell goes on.
        let done = writer.transaction(|tx| run(tx, hook, event, " || true"));
        if let Err(error) = done {
            let hook = hook.to_string_lossy();
            let text = format!("hook {hook} failed at {}: {error:#}", event.name);
            journal::tell(&HOOK_FAILED, &text, &fields(&hook, event));
        }
    }
}

/// Has hooks run at an event that can still be taken back. Fails with the first that does.
fn ask(tx: &mut Transaction, hooks: &[PathBuf], event: &Event) -> Result<()> {
    for hook in hooks {
        run(tx, hook, event, "").map_err(|error| {
            let hook = hook.to_string_lossy();
            let text = format!(
                "hook {hook} failed at {}, so nothing is changed: {error:#}",
                event.name
            );
            journal::record(&HOOK_FAILED, &text, &fields(&hook, event));
            anyhow!(text)
        })?;
    }
    Ok(())
}

/// `new-layer-added`: a layer is made of `origin`, and no entry boots it yet. Its root can be written to.
pub fn new_layer(
    context: &Context,
    tx: &mut Transaction,
    group: &Group,
    [base, origin, layer]: [&LvName; 3],
    filesystem: &Filesystem,
) -> Result<()> {
    let hooks = load()?;
    if hooks.is_empty() {
        return Ok(());
    }
    let old = Tree::Volume(origin.clone());
    roots::mounted(context, tx, group, &old, |tx, old_root| {
        let dir = mount_point(layer.as_str());
        let mounted = filesystem.mount(tx, &dir, "rw")?;
        let event = Event {
            name: "new-layer-added",
            args: full_names(context, &[origin, layer]),
            old_layer: (origin != base).then(|| origin.clone()),
            new_layer: Some(layer.clone()),
            old_base: Some(base.clone()),
            new_base: Some(base.clone()),
            old_root: Some(old_root.to_owned()),
            new_root: Some(dir),
        };
        ask(tx, &hooks, &event)?;
        mounted.unmount(tx)
    })
}

/// `new-base-with-tree-added`: a base is made. It holds what its image does, so its root can only be read.
pub fn new_base(
    context: &Context,
    tx: &mut Transaction,
    base: &LvName,
    filesystem: &Filesystem,
) -> Result<()> {
    let hooks = load()?;
    if hooks.is_empty() {
        return Ok(());
    }
    let dir = mount_point(base.as_str());
    let mounted = filesystem.mount(tx, &dir, filesystem.untouched())?;
    let event = Event {
        name: "new-base-with-tree-added",
        args: full_names(context, &[base]),
        new_base: Some(base.clone()),
        new_root: Some(dir),
        ..Event::default()
    };
    ask(tx, &hooks, &event)?;
    mounted.unmount(tx)
}

/// `post-merge`: what the layer that runs has changed is in the root of another layer, which is mounted at `root` and
/// has never booted. For imgbased's hooks that is `os-upgraded`.
pub fn merged(
    context: &Context,
    tx: &mut Transaction,
    group: &Group,
    events: &[&'static str],
    volumes: [&LvName; 2],
    root: &Path,
) -> Result<()> {
    let hooks = load()?;
    if hooks.is_empty() {
        return Ok(());
    }
    let running = roots::named(group, Tree::Running)?;
    roots::mounted(context, tx, group, &running, |tx, old_root| {
        for name in events {
            let event = Event {
                name,
                old_root: Some(old_root.to_owned()),
                new_root: Some(root.to_owned()),
                ..upgrade(context, group, volumes)?
            };
            ask(tx, &hooks, &event)?;
        }
        Ok(())
    })
}

/// `post-commit`: an update waits for the restart.
pub fn after_update(context: &Context, writer: &Writer, volumes: [&LvName; 2]) {
    let event = context
        .load()
        .and_then(|group| upgrade(context, &group, volumes));
    match event {
        Ok(event) => {
            let name = "post-commit";
            after(writer, &Event { name, ..event });
        }
        Err(error) => log::warn!("no hook is run at post-commit: {error:#}"),
    }
}

/// From the layer that runs to another one.
fn upgrade(context: &Context, group: &Group, [base, layer]: [&LvName; 2]) -> Result<Event> {
    let running = view::booted(group)?.context("no layer is booted")?;
    let old: LvName = running.parse()?;
    Ok(Event {
        args: full_names(context, &[&old, layer]),
        old_layer: Some(old),
        new_layer: Some(layer.clone()),
        old_base: Some(roots::base_of_running(group)?),
        new_base: Some(base.clone()),
        ..Event::default()
    })
}

/// `pre-layer-removed` and `pre-base-removed` for all that is to be removed, before anything is.
pub fn before_removal(
    context: &Context,
    writer: &Writer,
    group: &Group,
    names: &[LvName],
) -> Result<()> {
    let hooks = load()?;
    writer.transaction(|tx| {
        names.iter().try_for_each(|name| {
            let words = ["pre-layer-removed", "pre-base-removed"];
            ask(tx, &hooks, &removal(context, group, name, words))
        })
    })
}

/// `layer-removed` or `base-removed`. The group is as it was before.
pub fn after_removal(context: &Context, writer: &Writer, group: &Group, name: &LvName) {
    let words = ["layer-removed", "base-removed"];
    after(writer, &removal(context, group, name, words));
}

/// The event of these two that belongs to the removal of a layer or base.
fn removal(
    context: &Context,
    group: &Group,
    name: &LvName,
    [of_layer, of_base]: [&'static str; 2],
) -> Event {
    let (layer, base) = layer_and_base(group, name);
    Event {
        name: if layer.is_some() { of_layer } else { of_base },
        args: full_names(context, &[name]),
        old_layer: layer,
        old_base: base,
        ..Event::default()
    }
}

/// `volume-added` or `volume-removed`: the layers mount a volume at a path, or do so no more.
pub fn after_volume(
    context: &Context,
    writer: &Writer,
    name: &'static str,
    volume: &LvName,
    path: &str,
) {
    let mut args = full_names(context, &[volume]);
    args.push(path.to_owned());
    let event = Event {
        name,
        args,
        ..Event::default()
    };
    after(writer, &event);
}

/// `post-init-layout`: an installed system on a thin volume has become a base with a layer.
pub fn after_init(context: &Context, writer: &Writer, [installed, base, layer]: [&LvName; 3]) {
    let event = Event {
        name: "post-init-layout",
        args: full_names(context, &[installed, base, layer]),
        new_layer: Some(layer.clone()),
        new_base: Some(base.clone()),
        ..Event::default()
    };
    after(writer, &event);
}

/// `post-bless`: a layer or base has come up.
pub fn after_bless(context: &Context, writer: &Writer, group: &Group, name: &LvName) {
    let (layer, base) = layer_and_base(group, name);
    let event = Event {
        name: "post-bless",
        args: full_names(context, &[name]),
        new_layer: layer,
        new_base: base,
        ..Event::default()
    };
    after(writer, &event);
}

/// A layer with the base that it is of, or a base alone.
pub fn layer_and_base(group: &Group, name: &LvName) -> (Option<LvName>, Option<LvName>) {
    match group.volume(name.as_str()) {
        Some(layer) if layer.role == Role::Layer => (Some(name.clone()), group.base_of(layer)),
        _ => (None, Some(name.clone())),
    }
}

/// Volumes as imgbased names them.
fn full_names(context: &Context, names: &[&LvName]) -> Vec<String> {
    let vg = context.lvm.vg();
    names.iter().map(|name| format!("{vg}/{name}")).collect()
}

/// Runs a hook, whose line a dry run ends with `tail`. What it says is for the journal, and for `--verbose`.
fn run(tx: &mut Transaction, hook: &Path, event: &Event, tail: &str) -> Result<()> {
    let cmd = command(hook, event);
    let told = format!("runs the hook {} at {}", hook.display(), event.name);
    tx.tell_waiting(Some(&told));
    let _waiting = Waiting::new(|| format!("{} at {}", hook.display(), event.name));
    let done = tx.work(&format!("{cmd}{tail}"), |interrupt| {
        let said = limited::run(&cmd, TIME_LIMIT, interrupt)?;
        if !said.is_empty() {
            let hook = hook.to_string_lossy();
            let text = format!("hook {hook}: {said}");
            journal::tell(&HOOK_SAID, &text, &fields(&hook, event));
        }
        Ok(())
    });
    tx.tell_waiting(None);
    done
}

fn fields<'a>(hook: &'a str, event: &Event) -> [(&'static str, &'a str); 2] {
    [("IMGBASED_HOOK", hook), ("IMGBASED_EVENT", event.name)]
}

/// env(1) adds the variables to those that every program gets.
fn command(hook: &Path, event: &Event) -> Cmd {
    let mut cmd = Cmd::new("env").arg(format!("IMGBASED_EVENT={}", event.name));
    for (variable, name) in [
        ("OLD_LAYER", &event.old_layer),
        ("NEW_LAYER", &event.new_layer),
        ("OLD_BASE", &event.old_base),
        ("NEW_BASE", &event.new_base),
    ] {
        if let Some(name) = name {
            cmd = cmd.arg(format!("IMGBASED_{variable}={name}"));
        }
    }
    for (variable, root) in [("OLD_ROOT", &event.old_root), ("NEW_ROOT", &event.new_root)] {
        if let Some(root) = root {
            cmd = cmd.arg(format!("IMGBASED_{variable}={}", root.display()));
        }
    }
    cmd.arg(hook).arg(event.name).args(&event.args)
}

/// The hooks of this system, in the order in which they run. Those that are not safe to run are told of.
fn load() -> Result<Vec<PathBuf>> {
    let mut hooks = find(&DIRECTORIES.map(Path::new))?;
    hooks.retain(|Hook { path, refused }| {
        if let Some(why) = refused {
            log::warn!("hook {} is not run: {why}", path.display());
        }
        refused.is_none()
    });
    Ok(hooks.into_iter().map(|hook| hook.path).collect())
}

/// A program in one of the directories.
#[derive(Debug, PartialEq, Eq)]
struct Hook {
    path: PathBuf,
    /// Why it is not run, if so.
    refused: Option<String>,
}

/// The hooks in directories, in the order of their names. A name counts where it comes first, also if what has it there
/// is no program, as a link to `/dev/null`: then there is no hook of that name.
fn find(directories: &[&Path]) -> Result<Vec<Hook>> {
    let mut names = Vec::new();
    for dir in directories {
        let failed = || format!("cannot read {}", dir.display());
        let files = match fs::read_dir(dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            files => files.with_context(failed)?,
        };
        for file in files {
            let name = file.with_context(failed)?.file_name();
            names.extend(name.into_string().ok().filter(|name| is_name(name)));
        }
    }
    names.sort();
    names.dedup();
    let mut hooks = Vec::new();
    for name in names {
        let mut paths = directories.iter().map(|dir| dir.join(&name));
        let first = paths.find(|path| path.symlink_metadata().is_ok());
        hooks.extend(first.and_then(Hook::at));
    }
    Ok(hooks)
}

/// Whether a file of that name can be meant as a hook.
fn is_name(name: &str) -> bool {
    !name.starts_with('.') && !LEFT_BEHIND.iter().any(|end| name.ends_with(end))
}

impl Hook {
    /// The hook at `path`, if what is there is a program.
    fn at(path: PathBuf) -> Option<Self> {
        let refused = match path.metadata() {
            Ok(file) if !file.is_file() || file.mode() & 0o111 == 0 => return None,
            Ok(_) => refusal(&path),
            Err(error) => Err(error),
        };
        let refused = refused.unwrap_or_else(|error| Some(error.to_string()));
        Some(Self { path, refused })
    }
}

/// Why a program is not run, if so: somebody else than root could have put another in its place.
fn refusal(path: &Path) -> io::Result<Option<String>> {
    if path.to_string_lossy().contains('=') {
        return Ok(Some("env(1) takes a name with = for a variable".to_owned()));
    }
    let (real, dir) = (path.canonicalize()?, directory(path).canonicalize()?);
    for part in real.ancestors().chain(dir.ancestors()) {
        let (shown, metadata) = (part.display(), part.metadata()?);
        // Only a dry run is not root's.
        if ![0, Uid::effective().as_raw()].contains(&metadata.uid()) {
            return Ok(Some(format!("{shown} does not belong to root")));
        }
        // In such a directory nobody can replace the files of others.
        let is_sticky = metadata.is_dir() && metadata.mode() & 0o1000 != 0;
        if metadata.mode() & 0o022 != 0 && !is_sticky {
            return Ok(Some(format!("others than root can write to {shown}")));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    use std::time::Duration;

    use tempfile::TempDir;

    use super::*;
    use crate::admin::LOCK_WAIT;
    use crate::sys::transaction::change;

    /// Two directories, `etc` and `usr`.
    fn directories() -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in ["etc", "usr"] {
            fs::create_dir(dir.path().join(name)).unwrap();
            set_mode(&dir.path().join(name), 0o755);
        }
        dir
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn put(dir: &TempDir, name: &str, mode: u32) {
        let path = dir.path().join(name);
        fs::write(&path, "#!/bin/sh\n").unwrap();
        set_mode(&path, mode);
    }

    /// The names of those that run, with `!` before those that are refused.
    fn found(dir: &TempDir) -> String {
        let [etc, usr] = ["etc", "usr"].map(|name| dir.path().join(name));
        let hooks = find(&[&etc, &usr]).unwrap().into_iter();
        let names = hooks.map(|Hook { path, refused }| {
            let name = path.strip_prefix(dir.path()).unwrap().display();
            format!("{}{name}", if refused.is_some() { "!" } else { "" })
        });
        names.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn hooks_run_in_the_order_of_their_names_and_the_first_directory_counts() {
        let dir = directories();
        for name in [
            "usr/10-a", "usr/30-c", "usr/9-z", "etc/20-b", "etc/30-c", "usr/B",
        ] {
            put(&dir, name, 0o755);
        }
        assert_eq!(found(&dir), "usr/10-a etc/20-b etc/30-c usr/9-z usr/B");
        fs::remove_file(dir.path().join("etc/30-c")).unwrap();
        symlink("/dev/null", dir.path().join("etc/30-c")).unwrap();
        // No program is no hook, and has its name all the same.
        put(&dir, "etc/10-a", 0o644);
        fs::create_dir(dir.path().join("etc/9-z")).unwrap();
        assert_eq!(found(&dir), "etc/20-b usr/B");
        fs::remove_dir_all(dir.path().join("etc")).unwrap();
        assert_eq!(found(&dir), "usr/10-a usr/30-c usr/9-z usr/B");
        fs::remove_dir_all(dir.path().join("usr")).unwrap();
        assert_eq!(found(&dir), "");
    }

    #[test]
    fn what_is_left_beside_a_file_is_no_hook() {
        for (name, is_hook) in [
            ("10-a", true),
            ("a.sh", true),
            ("a.dpkg-old.sh", true),
            ("~a", true),
            ("a~", false),
            (".a.swp", false),
            ("a.dpkg-old", false),
            ("a.rpmsave", false),
        ] {
            assert_eq!(is_name(name), is_hook, "{name}");
        }
    }

    #[test]
    fn what_others_could_have_replaced_is_refused() {
        let dir = directories();
        for (name, mode) in [
            ("usr/safe", 0o755),
            ("usr/a=b", 0o755),
            ("usr/group", 0o775),
            ("usr/world", 0o757),
            ("usr/owner-only", 0o700),
        ] {
            put(&dir, name, mode);
        }
        let path = |name: &str| dir.path().join(name);
        symlink("safe", path("usr/link")).unwrap();
        symlink("world", path("usr/link-to-world")).unwrap();
        symlink("missing", path("usr/nowhere")).unwrap();
        fs::create_dir(path("open")).unwrap();
        put(&dir, "open/x", 0o755);
        set_mode(&path("open"), 0o777);
        symlink(path("open/x"), path("usr/open")).unwrap();
        let mut wanted = "!usr/a=b !usr/group usr/link !usr/link-to-world !usr/nowhere !usr/open usr/owner-only \
                          usr/safe !usr/world"
            .to_owned();
        assert_eq!(found(&dir), wanted);
        if Uid::effective().is_root() {
            chown(path("usr/safe"), Some(12345), None).unwrap();
            wanted = wanted
                .replace(" usr/link ", " !usr/link ")
                .replace(" usr/safe", " !usr/safe");
            assert_eq!(found(&dir), wanted);
        }
        set_mode(&path("usr"), 0o775);
        assert_eq!(
            found(&dir),
            wanted.replace('!', "").replace("usr/", "!usr/")
        );
    }

    fn event() -> Event {
        Event {
            name: "new-layer-added",
            args: vec!["HostVG/Base-0".to_owned(), "HostVG/Base-0.1".to_owned()],
            new_layer: "Base-0.1".parse().ok(),
            old_base: "Base-0".parse().ok(),
            new_root: Some("/mnt/a b".into()),
            ..Event::default()
        }
    }

    #[test]
    fn whoever_waits_for_the_lock_outlasts_a_hook() {
        let limit = Duration::from_secs(TIME_LIMIT.into());
        assert!(LOCK_WAIT > limit, "{LOCK_WAIT:?}");
    }

    #[test]
    fn the_line_of_a_hook_is_one_for_a_shell() {
        assert_eq!(
            command(Path::new("/etc/hook"), &event()).to_string(),
            "env IMGBASED_EVENT=new-layer-added IMGBASED_NEW_LAYER=Base-0.1 IMGBASED_OLD_BASE=Base-0 \
             'IMGBASED_NEW_ROOT=/mnt/a b' /etc/hook new-layer-added HostVG/Base-0 HostVG/Base-0.1"
        );
    }

    #[test]
    fn the_first_that_fails_ends_a_change_and_what_comes_after_it_does_not_run() {
        let (dir, hooks) = three();
        let error = change(|tx| ask(tx, &hooks, &event())).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "hook {} failed at new-layer-added, so nothing is changed: not today (exit status: 7)",
                hooks[1].display()
            )
        );
        assert_eq!(seen(&dir), told(&hooks[..2]));
    }

    #[test]
    fn after_a_change_all_run_and_in_a_dry_run_none() {
        let writer = |dry_run| Writer::new("test", Duration::ZERO, dry_run).unwrap();
        let (dir, hooks) = three();
        tell(&writer(true), &hooks, &event());
        assert_eq!(seen(&dir), "");
        tell(&writer(false), &hooks, &event());
        assert_eq!(seen(&dir), told(&hooks));
    }

    /// Three hooks, of which the second fails.
    fn three() -> (TempDir, [PathBuf; 3]) {
        let dir = directories();
        let seen = dir.path().join("seen");
        let hook = |name: &str, end: &str| {
            let path = dir.path().join(name);
            let script = format!(
                "#!/bin/sh\necho $0 $# $IMGBASED_EVENT >>{}\n{end}\n",
                seen.display()
            );
            // Another process writes it: one that a test beside this one starts would have it open, and it could not
            // be run.
            fs::write(dir.path().join("script"), script).unwrap();
            let install = Cmd::new("install").args(["-m", "0755"]);
            install
                .arg(dir.path().join("script"))
                .arg(&path)
                .run()
                .unwrap();
            path
        };
        let hooks = [
            hook("etc/1", ""),
            hook("etc/2", "echo not today; exit 7"),
            hook("etc/3", ""),
        ];
        (dir, hooks)
    }

    /// What the hooks have told of themselves.
    fn seen(dir: &TempDir) -> String {
        fs::read_to_string(dir.path().join("seen")).unwrap_or_default()
    }

    fn told(hooks: &[PathBuf]) -> String {
        let lines = hooks.iter();
        lines
            .map(|hook| format!("{} 3 new-layer-added\n", hook.display()))
            .collect()
    }
}
