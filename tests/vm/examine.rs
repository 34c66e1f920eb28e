//! Looks at the disk of a host after a verb was interrupted and the machine with it: what GRUB shows,
//! what an initramfs would activate, what `check` says, and whether the host can go on from there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use imgbased_helper::lvm::Lvm;
use imgbased_helper::model::layout::tag;
use serde_json::Value;

use super::host::Host;
use super::qemu::{Disk, Vm};
use super::rescue::Rescue;
use super::store;
use super::verbs::Verb;

/// What `check` ends with when it has found something.
const FOUND: i32 = 3;

/// The size of GRUB's environment block, in bytes.
const GRUBENV: usize = 1024;

/// The tag of the volume that the verbs of the tests make.
const MOUNTED_TAG: &str = "imgbased:mount=/srv/data";

/// A digest of a part of a filesystem: names, owners, modes, times and content. A layer has a line of
/// its own in fstab, and lvm2 keeps its backups in the layer that runs.
pub const CONTENT: &str = "tar --create --sort=name --exclude=etc/fstab --exclude=etc/lvm/backup --exclude=etc/lvm/archive etc \
     | sha256sum";

/// What a disk looks like: all that decides what a host can do with it, but the content of files and
/// what an interrupted verb left on the boot partition.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct State {
    /// The entry that boots by default, by id.
    default: String,
    /// The lines of grubenv on what boots before it.
    selection: Vec<String>,
    /// What each id in GRUB's menu boots.
    menu: BTreeMap<String, Entry>,
    /// The volumes of the group, as LVM lists them.
    volumes: BTreeMap<String, Volume>,
    /// The transaction in the pool's own metadata and the thin devices there.
    pool: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    layer: String,
    linux: String,
    initrd: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Volume {
    tags: String,
    origin: String,
    size: String,
    attributes: String,
    thin_id: String,
    transaction: String,
}

impl Volume {
    fn has_tag(&self, tag: &str) -> bool {
        self.tags.split(',').any(|t| t == tag)
    }

    fn is_base(&self) -> bool {
        self.has_tag("imgbased:base")
    }

    /// The same but for whether it has come up, and was left by a rollback.
    fn lasting(&self) -> Self {
        let is_told =
            |tag: &&str| [tag::GOOD, tag::HOLD].contains(tag) || tag.starts_with(tag::GOOD_AT);
        let tags = self.tags.split(',').filter(|tag| !is_told(tag));
        Self {
            tags: tags.collect::<Vec<_>>().join(","),
            ..self.clone()
        }
    }

    /// Whether it is a base or a layer that is finished.
    fn is_bootable(&self) -> bool {
        self.is_base() || self.has_tag("imgbased:layer")
    }
}

impl State {
    /// Whether the layer or base `name` is in the menu.
    pub fn lists(&self, name: &str) -> bool {
        self.menu.values().any(|entry| entry.layer == name)
    }

    /// What the default entry boots.
    pub fn default_layer(&self) -> Result<&str> {
        let entry = self.menu.get(&self.default);
        let entry = entry.with_context(|| format!("the default is not in {:?}", self.menu))?;
        Ok(&entry.layer)
    }
}

impl Display for State {
    /// The volumes with their role, the names in the menu and the pool, in one line.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (name, volume) in &self.volumes {
            write!(f, "{name} ({}) ", volume.tags.replace("imgbased:", ""))?;
        }
        write!(f, "menu:")?;
        for entry in self.menu.values() {
            write!(f, " {}", entry.layer)?;
        }
        write!(f, "; {}", self.selection.join(" "))?;
        write!(f, "; pool: {}", self.pool.join(" "))
    }
}

/// A host before the verb: what no verb of the tests may change.
pub struct Before {
    state: State,
    /// The content of each layer and base, and of what bases are made from, by name.
    content: BTreeMap<String, String>,
    /// What each run of a verb makes with another content, if only by its times.
    made: &'static [&'static str],
    /// Whether it runs one of its layers. The rescue system runs none, so some verbs cannot run again there.
    runs: bool,
}

impl Before {
    /// The installed host, while it is off.
    pub fn installed() -> Result<&'static Self> {
        static BEFORE: OnceLock<Result<Before, String>> = OnceLock::new();
        store::once(&BEFORE, || {
            let host = Host::prepared()?.disk("before")?;
            Self::read(host.path(), false)
        })
    }

    /// The host that was running, by its disk at that moment. Of what the verb makes, the `made` is known by the
    /// disk `done` on which the verb has come to its end.
    pub fn running(disk: &Path, done: &Path, made: &[&str]) -> Result<Self> {
        let mut before = Self::read(disk, true)?;
        let disk = Disk::forgetful(done, "qcow2", "host");
        let mut vm = Rescue::prepared()?.with("done", disk)?;
        let state = look(&mut vm)?;
        let mut content = contents(&mut vm, &state)?;
        for name in made {
            let made = content.remove_entry(*name);
            before
                .content
                .extend([made.with_context(|| format!("{name} was not made"))?]);
        }
        Ok(before)
    }

    /// The same of a verb that runs more than once, and makes these layers each time. The files of its `image` have
    /// this content.
    pub fn running_again(
        disk: &Path,
        image: String,
        made: &'static [&'static str],
    ) -> Result<Self> {
        let mut before = Self::read(disk, true)?;
        before.content.insert("Extra".into(), image);
        Ok(Self { made, ..before })
    }

    fn read(disk: &Path, runs: bool) -> Result<Self> {
        let disk = Disk::forgetful(disk, "qcow2", "host");
        let mut vm = Rescue::prepared()?.with("before", disk)?;
        let state = look(&mut vm)?;
        let mut content = contents(&mut vm, &state)?;
        let image = vm.ok(&format!("cd /root/Extra && {CONTENT}; cd /"))?;
        // Two digests of nothing would be the same.
        ensure!(content.values().all(|other| *other != image), "{content:?}");
        content.insert("Extra".into(), image);
        Ok(Self {
            state,
            content,
            made: &[],
            runs,
        })
    }

    /// Refuses a state in which something is missing or changed that is none of the verb's business.
    fn is_kept(&self, now: &State, verb: &Verb) -> Result<()> {
        let is_selected = verb.selects && now.default_layer()? == verb.subject;
        ensure!(
            now.default == self.state.default || is_selected,
            "the default is {:?}",
            now.default
        );
        for (id, entry) in &self.state.menu {
            let found = now.menu.get(id);
            ensure!(found == Some(entry), "the entry {id} is now {found:?}");
        }
        // The pool has another transaction after each change.
        let volumes = self.state.volumes.iter();
        for (name, volume) in volumes.filter(|(_, volume)| !volume.thin_id.is_empty()) {
            let found = now.volumes.get(name).map(Volume::lasting);
            ensure!(
                found.as_ref() == Some(&volume.lasting()),
                "the volume {name} is now {found:?}"
            );
        }
        Ok(())
    }

    /// The content that a layer or base has to have: its own, or that of its origin.
    fn content_of(&self, name: &str, volume: &Volume) -> Result<&str> {
        let own = self.content.get(name);
        let content = own.or_else(|| self.content.get(&volume.origin));
        content
            .map(String::as_str)
            .with_context(|| format!("nothing is known of {name}"))
    }
}

/// Looks at the disks on which a verb was interrupted, and keeps what is wrong for the end, so that
/// all of them are looked at.
pub struct Examiner<'a> {
    name: String,
    verb: &'a Verb,
    before: &'a Before,
    kinds: BTreeSet<State>,
    looked: usize,
    failed: Vec<String>,
}

/// What was seen on a disk.
pub struct Seen {
    pub state: State,
    /// Whether no disk before looked like this one.
    pub is_new: bool,
}

impl<'a> Examiner<'a> {
    /// `name` is that of the scenario, in what is printed and in the names of logs.
    pub fn new(name: &str, verb: &'a Verb, before: &'a Before) -> Self {
        Self {
            name: name.into(),
            verb,
            before,
            kinds: BTreeSet::new(),
            looked: 0,
            failed: Vec::new(),
        }
    }

    /// Looks at a disk. All that the menu lists has to be whole, as has all that was there before the
    /// verb, and `check --repair` has to leave nothing to repair. On the first disk of each kind the
    /// verb then has to succeed, if the host was off. `what` tells the disk from others. Returns nothing if it is not so.
    pub fn look(&mut self, what: &str, disk: Disk) -> Option<Seen> {
        self.looked += 1;
        let started = Instant::now();
        let result = self.examine(disk);
        let seen = self.judge(what, result)?;
        let seconds = started.elapsed().as_secs_f32();
        let (name, state) = (&self.name, &seen.state);
        store::say(&format!("{name} {what}: {state} ({seconds:.0} s)"));
        Some(seen)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many kinds of disks there were.
    pub fn kinds(&self) -> usize {
        self.kinds.len()
    }

    /// Keeps what is wrong for the end.
    pub fn judge<T>(&mut self, what: &str, result: Result<T>) -> Option<T> {
        let error = match result {
            Ok(value) => return Some(value),
            Err(error) => format!("{} {what}: {error:#}", self.name),
        };
        store::say(&error);
        self.failed.extend(error.lines().next().map(str::to_owned));
        None
    }

    /// Says how many disks there were, and fails if something was wrong.
    pub fn finish(self) -> Result<()> {
        store::say(&format!(
            "{}: {} disks looked at, {} kinds, {} failures",
            self.name,
            self.looked,
            self.kinds.len(),
            self.failed.len()
        ));
        ensure!(self.failed.is_empty(), "{}", self.failed.join("\n"));
        Ok(())
    }

    fn examine(&mut self, disk: Disk) -> Result<Seen> {
        let before = self.before;
        let mut vm = Rescue::prepared()?.with(&self.name, disk)?;
        let state = look(&mut vm)?;
        let is_new = self.kinds.insert(state.clone());
        let whole = before
            .is_kept(&state, self.verb)
            .and_then(|()| has_kernels(&mut vm, &state))
            .and_then(|()| is_whole(&mut vm, before, &state))
            .and_then(|()| go_on(&mut vm, before, self.verb, is_new && !before.runs));
        whole.with_context(|| state.to_string())?;
        Ok(Seen { state, is_new })
    }
}

/// Refuses a menu with something that cannot be booted, and layers or bases with other content than
/// they were made with.
fn is_whole(vm: &mut Vm, before: &Before, found: &State) -> Result<()> {
    for (id, entry) in &found.menu {
        let volume = found.volumes.get(&entry.layer);
        ensure!(
            volume.is_some_and(Volume::is_bootable),
            "the entry {id} boots {volume:?}"
        );
    }
    for (name, content) in contents(vm, found)? {
        if before.made.contains(&name.as_str()) {
            continue;
        }
        ensure!(
            content == before.content_of(&name, &found.volumes[&name])?,
            "{name} has other content: {}",
            newest(vm, &name)?
        );
    }
    has_content(vm, found)
}

/// What was changed last in a layer or base that is active, with the time.
fn newest(vm: &mut Vm, name: &str) -> Result<String> {
    vm.ok(&format!(
        "mount -o ro,noload /dev/HostVG/{name} /mnt && cd /mnt && find etc -printf '%C+ %T+ %p\\n' | sort -r | head -5; \
         cd / && umount /mnt"
    ))
}

/// Refuses a volume that layers mount and that does not hold what its directory has held.
fn has_content(vm: &mut Vm, state: &State) -> Result<()> {
    let mut volumes = state.volumes.iter();
    let Some((name, _)) = volumes.find(|(_, volume)| volume.has_tag(MOUNTED_TAG)) else {
        return Ok(());
    };
    vm.ok(&format!(
        "lvm lvchange -qq -K -ay HostVG/{name} && (e2fsck -p /dev/HostVG/{name} || test $? = 1) && \
         mount -o ro /dev/HostVG/{name} /mnt"
    ))?;
    let content = vm.ok("cat /mnt/file; umount /mnt")?;
    ensure!(content == "text", "{name} holds {content:?}");
    Ok(())
}

/// Has `check` repair what is left, looks at what is listed, and runs the verb `again` if that is wanted.
fn go_on(vm: &mut Vm, before: &Before, verb: &Verb, again: bool) -> Result<()> {
    vm.ok("mount /dev/disk/by-id/virtio-host-part2 /boot")?;
    let found = vm.run("imgbased-helper check")?;
    ensure!(
        found.status == if found.text.is_empty() { 0 } else { FOUND },
        "check: {found:?}"
    );
    if found.status == FOUND {
        vm.ok("imgbased-helper check --repair")
            .with_context(|| format!("check said {:?}", found.text))?;
        is_clean(vm)?;
    }
    if verb.subject == "lists" {
        let listed = vm.ok("imgbased-helper persist list")?;
        let is_kept = listed.lines().any(|line| line == "/srv/*.conf");
        ensure!(is_kept, "only {listed:?} is listed");
    }
    if again {
        vm.ok(&verb.prepare()?)?;
        vm.ok(verb.run)?;
        is_clean(vm)?;
    }
    vm.ok("umount /boot && vgchange -q -an HostVG")?;
    let now = look(vm)?;
    before.is_kept(&now, verb).context("after the repair")
}

fn is_clean(vm: &mut Vm) -> Result<()> {
    let left = vm.ok("imgbased-helper check")?;
    ensure!(left.is_empty(), "check still says {left}");
    Ok(())
}

/// Activates all layers and bases that are finished, as the initramfs does, first what boots by default.
/// Checks their filesystems from end to end and returns the content of each by name. They stay active,
/// as on a host that runs.
fn contents(vm: &mut Vm, state: &State) -> Result<BTreeMap<String, String>> {
    let lvm = Lvm::new("HostVG".parse()?);
    let default = state.default_layer()?;
    let volumes = state.volumes.iter().filter(|(_, v)| v.is_bootable());
    let mut volumes: Vec<_> = volumes.collect();
    volumes.sort_by_key(|(name, _)| *name != default);
    let mut contents = BTreeMap::new();
    for (name, volume) in volumes {
        vm.ok(&lvm.activate_at_boot(&[name.parse()?]).to_string())?;
        // e2fsck(8): 1 is "errors corrected". A base is read-only.
        let fsck = |how: &str| format!("e2fsck {how} /dev/HostVG/{name} || test $? = 1");
        if volume.is_base() {
            vm.ok(&format!("e2fsck -fn /dev/HostVG/{name}"))?;
        } else {
            vm.ok(&fsck("-p"))?;
            vm.ok(&fsck("-fp"))?;
        }
        let content = vm.ok(&format!(
            "mount -o ro,noload /dev/HostVG/{name} /mnt && cd /mnt && {CONTENT}; cd / && umount /mnt"
        ))?;
        contents.insert(name.clone(), content);
    }
    Ok(contents)
}

/// Reads a disk without changing it.
fn look(vm: &mut Vm) -> Result<State> {
    let block = grub_file(vm, "/grub/grubenv", "cat")?;
    ensure!(block.len() == GRUBENV, "grubenv: {block}");
    let default = block
        .lines()
        .find_map(|line| line.strip_prefix("saved_entry="))
        .context("grubenv has no saved_entry")?
        .to_owned();
    let menu = parse_menu(&grub_file(vm, "/grub/imgbased.cfg", "cat")?)?;
    let selection = block.lines().filter(|line| {
        let value = line
            .strip_prefix("imgbased_")
            .or(line.strip_prefix("next_entry"));
        value.is_some_and(|value| !value.ends_with('='))
    });
    Ok(State {
        default,
        selection: selection.map(str::to_owned).collect(),
        menu,
        volumes: volumes(vm)?,
        pool: pool(vm)?,
    })
}

/// Refuses kernels and initramfs images in the menu that are not whole: their names end in the begin
/// of their digest.
fn has_kernels(vm: &mut Vm, state: &State) -> Result<()> {
    let entries = state.menu.values();
    let mut kernels: Vec<&String> = entries.flat_map(|e| [&e.linux, &e.initrd]).collect();
    kernels.sort();
    kernels.dedup();
    for path in kernels {
        let digest = grub_file(vm, path, "sha256sum")?;
        let (_, wanted) = path.rsplit_once('-').context("a kernel without a digest")?;
        ensure!(
            wanted.len() == 16 && digest.starts_with(wanted),
            "{path} has the digest {digest}"
        );
    }
    Ok(())
}

/// What `filter` prints of a file on the boot partition as GRUB's own code reads it, which replays
/// no journal.
fn grub_file(vm: &mut Vm, path: &str, filter: &str) -> Result<String> {
    vm.ok(&format!(
        "grub-fstest /dev/disk/by-id/virtio-host cat '(loop0,gpt2){path}' >/tmp/file && {filter} </tmp/file"
    ))
}

/// The entries of a menu of the helper, by id.
fn parse_menu(text: &str) -> Result<BTreeMap<String, Entry>> {
    let mut menu = BTreeMap::new();
    let cut_off = || format!("cut off: {text:?}");
    let text = text.trim_end().to_owned() + "\n";
    let entries = text.split_once("if [ -z \"$imgbased_listed\" ]; then");
    let (_, entries) = entries.with_context(cut_off)?;
    // Once more, those on trial.
    let (entries, others) = entries.split_once("\nfi\n").with_context(cut_off)?;
    ensure!(others.is_empty() || others.ends_with("}\nfi\n"), cut_off());
    for block in entries.split("\nmenuentry ").skip(1) {
        let after = |begin: &str| {
            let rest = block.split_once(begin).map(|(_, rest)| rest);
            let word = rest.and_then(|rest| rest.split([' ', '\n', '\'', ';']).next());
            word.map(str::to_owned)
                .with_context(|| format!("no {begin:?} in {block:?}"))
        };
        ensure!(block.trim_end().ends_with('}'), "cut off: {block:?}");
        let entry = Entry {
            layer: after("imgbased.layer=")?,
            linux: after("linux $imgbased_boot")?,
            initrd: after("initrd $imgbased_boot")?,
        };
        menu.insert(after("--id '")?, entry);
    }
    Ok(menu)
}

/// The volumes of the group, by name.
fn volumes(vm: &mut Vm) -> Result<BTreeMap<String, Volume>> {
    // What it says on stderr would be in the middle of the report.
    let report = vm.ok("lvm lvs --reportformat json --units b \
         -o lv_name,lv_tags,origin,lv_size,lv_attr,thin_id,transaction_id HostVG 2>/tmp/stderr")?;
    let report: Value = serde_json::from_str(&report).with_context(|| report.clone())?;
    let rows = report["report"][0]["lv"].as_array();
    let rows = rows.context("a report without volumes")?;
    let volume = |row: &Value| {
        let text = |column: &str| row[column].as_str().unwrap_or_default().to_owned();
        let volume = Volume {
            tags: text("lv_tags"),
            origin: text("origin"),
            size: text("lv_size"),
            attributes: text("lv_attr"),
            thin_id: text("thin_id"),
            transaction: text("transaction_id"),
        };
        (text("lv_name"), volume)
    };
    Ok(rows.iter().map(volume).collect())
}

/// The transaction in the pool's metadata and the thin devices there, as `thin_dump` shows them.
fn pool(vm: &mut Vm) -> Result<Vec<String>> {
    let dump = vm.ok(
        "lvm lvchange --yes -q -ay HostVG/ImagePool_tmeta >/dev/null && \
         thin_dump --skip-mappings /dev/HostVG/ImagePool_tmeta && \
         lvm lvchange -q -an HostVG/ImagePool_tmeta && udevadm settle",
    )?;
    let words = || dump.split_whitespace();
    // Each device has its transaction as well; the first is that of the pool.
    let transaction = words().find(|word| word.starts_with("transaction="));
    let devices = words().filter(|word| word.starts_with("dev_id="));
    Ok(transaction
        .into_iter()
        .chain(devices)
        .map(str::to_owned)
        .collect())
}
