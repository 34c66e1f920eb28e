//! Boot Loader Specification entries of type #1, the source of truth for every boot loader.
//! <https://uapi-group.org/specifications/specs/boot_loader_specification/>

use anyhow::{Context, Result, bail, ensure};
use rpm_version::rpm_evr_compare;

use crate::model::cmdline::VGID;
use crate::model::name::{DEFAULT_VG, LvName, VgName, VgUuid};

/// What all our ids begin with.
pub const PREFIX: &str = "imgbased-";
/// Sort keys: layers come first in the menu, bases last.
const LAYER_SORT_KEY: &str = "imgbased-layer";
const BASE_SORT_KEY: &str = "imgbased-rescue";
/// Keys that GRUB alone knows: who may boot an entry, and how the menu shows it.
const GRUB_KEYS: [&str; 3] = ["grub_users", "grub_class", "grub_arg"];

/// The option that names the layer or base to boot.
const LAYER: &str = "imgbased.layer=";

/// The options of a layer that has never come up: whatever fails, the host restarts, and the boot loader
/// goes on to another entry. `imgbased.trial` is for the units that wait for the end of the boot.
const TRIAL: [&str; 5] = [
    "imgbased.trial",
    "imgbased.onfail=reboot",
    "panic=30",
    "rd.shell=0",
    "rd.emergency=reboot",
];

/// One entry that boots a layer or a base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The file name without `.conf`.
    pub id: String,
    pub title: String,
    /// The kernel's version.
    pub version: String,
    pub sort_key: String,
    /// Paths relative to `$BOOT`, with a leading slash.
    pub linux: String,
    pub initrd: String,
    pub options: String,
    /// Lines that GRUB alone reads, as they stand.
    pub grub: Vec<String>,
}

/// What an entry boots, apart from its name: taken from a base for all its layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    pub version: String,
    pub linux: String,
    pub initrd: String,
    /// Without what belongs to a layer.
    pub options: String,
    pub grub: Vec<String>,
    /// The name of the operating system, for the title.
    pub system: String,
}

impl Entry {
    /// The entries of a layer, or of a base, which boots under a volatile overlay: one for each of its
    /// kernels, the newest first. That one has the id of the layer itself.
    ///
    /// Refuses options that a boot loader would change on their way to the kernel.
    pub fn of_kernels(
        vg: &VgName,
        name: &LvName,
        is_base: bool,
        kernels: &[Payload],
    ) -> Result<Vec<Self>> {
        let mut entries = Vec::new();
        for payload in kernels {
            let mut entry = Self::new(vg, name, is_base, payload)?;
            if !entries.is_empty() {
                entry.id = id_of_older(vg, name, &payload.version);
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    /// The entry of the newest kernel.
    ///
    /// Refuses options that a boot loader would change on their way to the kernel.
    pub fn new(vg: &VgName, name: &LvName, is_base: bool, payload: &Payload) -> Result<Self> {
        check_options(&payload.options)?;
        let mut options = payload.options.clone();
        if !options.is_empty() {
            options.push(' ');
        }
        options += &format!("{LAYER}{name}");
        if vg.as_str() != DEFAULT_VG {
            options += &format!(" imgbased.vg={vg}");
        }
        let kind = if is_base { " factory state" } else { "" };
        Ok(Self {
            id: id(vg, name),
            title: format!(
                "{name}{kind} ({}, Linux {})",
                payload.system, payload.version
            ),
            version: payload.version.clone(),
            sort_key: if is_base {
                BASE_SORT_KEY
            } else {
                LAYER_SORT_KEY
            }
            .to_owned(),
            linux: payload.linux.clone(),
            initrd: payload.initrd.clone(),
            options,
            grub: payload.grub.clone(),
        })
    }

    /// The same entry, which boots a layer of this group only: names of groups are not unique.
    pub fn of_group(mut self, uuid: &VgUuid) -> Self {
        self.options += &format!(" {VGID}={uuid}");
        self
    }

    /// What this entry boots, for another one that boots the same.
    pub fn payload(&self) -> Payload {
        let system = self
            .title
            .split_once(" (")
            .and_then(|(_, rest)| rest.rsplit_once(", Linux "))
            .map_or("Linux", |(system, _)| system);
        Payload {
            version: self.version.clone(),
            linux: self.linux.clone(),
            initrd: self.initrd.clone(),
            options: without_layer_options(&without_trial(&self.options)),
            grub: self.grub.clone(),
            system: system.to_owned(),
        }
    }

    /// The same entry for a layer that has never come up.
    pub fn on_trial(mut self) -> Self {
        if !self.is_trial() {
            self.options = format!("{} {}", self.options, TRIAL.join(" "));
        }
        self
    }

    /// The same entry for a layer that has come up, or that nothing else could be booted for.
    pub fn confirmed(mut self) -> Self {
        self.options = without_trial(&self.options);
        self
    }

    pub fn is_trial(&self) -> bool {
        words(&self.options).any(|word| word == TRIAL[0])
    }

    /// The layer or base that this entry boots: the last `imgbased.layer=`, as in the initramfs.
    pub fn layer(&self) -> Option<&str> {
        self.option(LAYER)
    }

    /// The volume group that the layer is in.
    pub fn vg(&self) -> &str {
        self.option("imgbased.vg=").unwrap_or(DEFAULT_VG)
    }

    /// Whether this entry names its group by this UUID, or cannot: [`VgUuid`] tells why.
    pub fn names_group(&self, uuid: &str) -> bool {
        let is_named = self.option(&format!("{VGID}=")) == Some(uuid);
        is_named || uuid.parse::<VgUuid>().is_err()
    }

    /// Whether this entry boots that layer or base of that group.
    pub fn boots(&self, vg: &VgName, layer: &str) -> bool {
        self.vg() == vg.as_str() && self.layer() == Some(layer)
    }

    /// Whether we wrote this entry for that layer or base of that group.
    pub fn is_of(&self, vg: &VgName, name: &LvName) -> bool {
        self.boots(vg, name.as_str())
            && (self.id == id(vg, name) || self.id == id_of_older(vg, name, &self.version))
    }

    fn option(&self, key: &str) -> Option<&str> {
        let values = words(&self.options).filter_map(|word| word.strip_prefix(key));
        values.last()
    }

    /// Reads an entry; nothing if it does not boot a layer. Refuses one that does, but that cannot
    /// be put into a menu as it is.
    pub fn parse(id: &str, text: &str) -> Result<Option<Self>> {
        let Some(entry) = Self::read(id, text) else {
            return Ok(None);
        };
        let check = || -> Result<()> {
            ensure!(
                plain(&entry.title) == entry.title,
                "its title has characters that end a menu entry"
            );
            ensure!(
                [&entry.id, &entry.linux, &entry.initrd]
                    .iter()
                    .all(|text| is_path(text)),
                "its name or a path has characters that end a menu entry"
            );
            check_options(&entry.options)
        };
        check().with_context(|| format!("the boot entry {id} is not used"))?;
        Ok(Some(entry))
    }

    fn read(id: &str, text: &str) -> Option<Self> {
        const KEYS: [&str; 6] = ["title", "version", "sort-key", "linux", "initrd", "options"];
        // Most entries of others end here.
        if !text.contains(LAYER) {
            return None;
        }
        let mut values = [None; KEYS.len()];
        for line in text.lines() {
            let Some((key, value)) = line.trim().split_once([' ', '\t']) else {
                continue;
            };
            if let Some(at) = KEYS.iter().position(|k| *k == key) {
                values[at].get_or_insert(value.trim());
            }
        }
        let [title, version, sort_key, linux, initrd, options] =
            values.map(|value| value.map(str::to_owned));
        let entry = Self {
            id: id.to_owned(),
            title: title?,
            version: version?,
            sort_key: sort_key?,
            linux: linux?,
            initrd: initrd?,
            options: options?,
            grub: text.lines().filter_map(grub_line).collect(),
        };
        entry.layer().is_some().then_some(entry)
    }

    /// The text of the entry's file.
    pub fn render(&self) -> String {
        let mut text = format!(
            "title {}\nversion {}\nsort-key {}\nlinux {}\ninitrd {}\noptions {}\n",
            self.title, self.version, self.sort_key, self.linux, self.initrd, self.options
        );
        for line in &self.grub {
            text += &format!("{line}\n");
        }
        text
    }

    /// Puts entries in the order of a menu: layers before bases, the newest first, each with its newest
    /// kernel first.
    pub fn sort(entries: &mut Vec<Self>) {
        let name = |entry: &Self| entry.layer().and_then(|layer| layer.parse::<LvName>().ok());
        let mut named: Vec<_> = entries.drain(..).map(|e| (name(&e), e)).collect();
        named.sort_by(|(name, entry), (other_name, other)| {
            let order = entry.sort_key.cmp(&other.sort_key);
            order
                .then_with(|| other_name.cmp(name))
                .then_with(|| rpm_evr_compare(&other.version, &entry.version))
                .then_with(|| entry.id.cmp(&other.id))
        });
        entries.extend(named.into_iter().map(|(_, entry)| entry));
    }
}

/// The id of the entry of a layer or base with its newest kernel.
pub fn id(vg: &VgName, name: &LvName) -> String {
    uncounted(full_name(vg, name))
}

/// The id of the entry of a layer or base with an older kernel.
fn id_of_older(vg: &VgName, name: &LvName, version: &str) -> String {
    uncounted(format!("{}@{version}", full_name(vg, name)))
}

/// Whether that is an id of a layer or base, with whatever kernel.
pub fn is_id_of(vg: &VgName, name: &LvName, text: &str) -> bool {
    let older = text.strip_prefix(full_name(vg, name).as_str());
    text == id(vg, name) || older.is_some_and(|rest| rest.starts_with('@'))
}

/// Whether that is an id as ours are, of whatever group.
pub fn is_our_id(text: &str) -> bool {
    text.starts_with(PREFIX)
}

fn full_name(vg: &VgName, name: &LvName) -> String {
    let group = if vg.as_str() == DEFAULT_VG {
        String::new()
    } else {
        format!("{vg}-")
    };
    format!("{PREFIX}{group}{name}")
}

/// What ends in a boot counter, `+LEFT` or `+LEFT-DONE`, would be renamed by systemd-boot (Boot Loader
/// Specification, "Boot counting").
fn uncounted(text: String) -> String {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let is_counter = |tail: &str| match tail.split_once('-') {
        Some((left, done)) => is_number(left) && is_number(done),
        None => is_number(tail),
    };
    match text.rsplit_once('+') {
        Some((_, tail)) if is_counter(tail) => text + "_",
        _ => text,
    }
}

/// Options without those of a trial. What others have put beside them stays.
fn without_trial(options: &str) -> String {
    let words: Vec<&str> = words(options).collect();
    let begin = words.iter().position(|word| *word == TRIAL[0]);
    let (before, trial) = words.split_at(begin.unwrap_or(words.len()));
    let others = trial.iter().filter(|word| !TRIAL.contains(word));
    before
        .iter()
        .chain(others)
        .copied()
        .collect::<Vec<_>>()
        .join(" ")
}

/// A line of an entry that GRUB alone reads, if it cannot be taken for anything else.
fn grub_line(line: &str) -> Option<String> {
    let (key, value) = line.trim().split_once([' ', '\t'])?;
    let value = value.trim();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || " _.,-$".contains(c);
    (GRUB_KEYS.contains(&key) && !value.is_empty() && value.chars().all(is_plain))
        .then(|| format!("{key} {value}"))
}

/// Whether we wrote the text of an entry once, for this layer or base, whatever has become of its options.
pub fn was_ours(text: &str, name: &LvName) -> bool {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
    // A rank may come before the key (src/boot/counting.rs).
    let is_ours = |key: &str| {
        [LAYER_SORT_KEY, BASE_SORT_KEY]
            .iter()
            .any(|k| key.trim().ends_with(k))
    };
    value("sort-key ").is_some_and(is_ours)
        && value("title ").and_then(|title| title.split(' ').next()) == Some(name.as_str())
}

/// Options that belong to one layer or one way to find a root, or that the boot loader adds.
pub fn without_layer_options(options: &str) -> String {
    let belongs_to_layer = |word: &&str| {
        let key = word.split('=').next().unwrap_or_default();
        key.starts_with("imgbased.")
            || key.starts_with("rd.lvm")
            || matches!(
                key,
                "BOOT_IMAGE" | "initrd" | "root" | "rootflags" | "rootfstype" | "ro" | "rw"
            )
    };
    let words = words(options).filter(|word| !belongs_to_layer(word));
    words.collect::<Vec<_>>().join(" ")
}

/// The words of kernel options as they stand, quotes and all. White space in quotes is a part of
/// the word.
fn words(options: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    let words = options.split(move |c: char| {
        quoted ^= c == '"';
        c.is_ascii_whitespace() && !quoted
    });
    words.filter(|word| !word.is_empty())
}

/// GRUB reads options as a script: other characters than these would end the command, name a
/// variable or vanish.
pub fn check_options(options: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || " _.,:=+@%~*?[]/\"-^!".contains(c);
    if let Some(bad) = options.chars().find(|c| !allowed(*c)) {
        bail!("kernel options {options:?} contain {bad:?}, which GRUB would not pass on unchanged");
    }
    ensure!(
        options.matches('"').count() % 2 == 0,
        "kernel options {options:?} have an open quote"
    );
    ensure!(
        words(options).all(|word| word != "--"),
        "kernel options {options:?} contain a lone --; what follows would belong to init"
    );
    if let Some(word) = words(options).find(|word| is_pattern(word)) {
        bail!(
            "kernel options {options:?} contain {word:?}, which GRUB would replace by the names of files \
             or disks; it would pass on wildcards in double quotes"
        );
    }
    Ok(())
}

/// Whether GRUB would look for files or disks with such names: a wildcard in an absolute path, or in what
/// can be the name of a disk (`wildcard_expand` in its `grub-core/commands/wildcard.c`).
fn is_pattern(word: &str) -> bool {
    let mut is_quoted = false;
    let mut before = String::new();
    for c in word.chars() {
        match c {
            '"' => is_quoted = !is_quoted,
            '*' | '?' | '[' if !is_quoted => {
                return before.starts_with('/') || !before.contains(['/', '=']);
            }
            _ => before.push(c),
        }
    }
    false
}

/// A name that comes from an image, cut down to what every menu shows as it is.
pub fn plain_title(text: &str) -> String {
    plain(text.trim()).chars().take(80).collect()
}

/// A title with question marks for what would end it in GRUB's script.
fn plain(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || " _.,:+@~/()[]?-".contains(c) {
                c
            } else {
                '?'
            }
        })
        .collect()
}

/// Whether GRUB's script takes the text as one word.
fn is_path(text: &str) -> bool {
    text.chars()
        .all(|c| c.is_ascii_alphanumeric() || "_.,:+@~/-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(options: &str) -> Payload {
        Payload {
            version: "6.12.1-amd64".into(),
            linux: "/imgbased/vmlinuz-6.12.1-amd64-0123".into(),
            initrd: "/imgbased/initrd-6.12.1-amd64-4567".into(),
            options: options.into(),
            grub: Vec::new(),
            system: "Debian GNU/Linux 13 (trixie)".into(),
        }
    }

    fn entry(vg: &str, name: &str, is_base: bool, options: &str) -> Result<Entry> {
        Entry::new(
            &vg.parse().unwrap(),
            &name.parse().unwrap(),
            is_base,
            &payload(options),
        )
    }

    #[test]
    fn an_entry_is_rendered_and_read_back() {
        let entry = entry("HostVG", "Base-0.1", false, "console=ttyS0 quiet").unwrap();
        assert_eq!(
            entry.render(),
            "title Base-0.1 (Debian GNU/Linux 13 (trixie), Linux 6.12.1-amd64)\n\
             version 6.12.1-amd64\n\
             sort-key imgbased-layer\n\
             linux /imgbased/vmlinuz-6.12.1-amd64-0123\n\
             initrd /imgbased/initrd-6.12.1-amd64-4567\n\
             options console=ttyS0 quiet imgbased.layer=Base-0.1\n"
        );
        let parsed = Entry::parse(&entry.id, &entry.render()).unwrap();
        assert_eq!(parsed, Some(entry.clone()));
        assert_eq!(entry.layer(), Some("Base-0.1"));
        assert_eq!(entry.payload(), payload("console=ttyS0 quiet"));
    }

    #[test]
    fn an_entry_on_trial_restarts_until_it_is_confirmed() {
        let entry = entry("HostVG", "Base-0.1", false, "panic=5 quiet").unwrap();
        let trial = entry.clone().on_trial();
        assert_eq!(
            trial.options,
            "panic=5 quiet imgbased.layer=Base-0.1 imgbased.trial imgbased.onfail=reboot panic=30 \
             rd.shell=0 rd.emergency=reboot"
        );
        assert!(trial.is_trial() && !entry.is_trial());
        assert_eq!(trial.clone().on_trial(), trial);
        assert_eq!(trial.payload(), entry.payload());
        assert_eq!(trial.clone().confirmed(), entry);
        let mut edited = trial;
        edited.options += " debug";
        assert_eq!(
            edited.confirmed().options,
            format!("{} debug", entry.options)
        );
    }

    #[test]
    fn each_kernel_has_an_entry_of_its_own() {
        let (vg, name): (VgName, LvName) = ("HostVG".parse().unwrap(), "Base-0.1".parse().unwrap());
        let kernels = ["6.12.240", "6.12.80", "6.1+7"].map(|version| Payload {
            version: version.into(),
            ..payload("quiet")
        });
        let entries = Entry::of_kernels(&vg, &name, false, &kernels).unwrap();
        let ids: Vec<&str> = entries.iter().map(|e| e.id.as_str()).collect();
        assert_eq!(
            ids,
            [
                "imgbased-Base-0.1",
                "imgbased-Base-0.1@6.12.80",
                "imgbased-Base-0.1@6.1+7_"
            ]
        );
        let mut sorted = entries.clone();
        sorted.reverse();
        Entry::sort(&mut sorted);
        assert_eq!(sorted, entries);
        for entry in &entries {
            assert!(entry.is_of(&vg, &name));
            assert_eq!(
                Entry::parse(&entry.id, &entry.render()).unwrap().as_ref(),
                Some(entry)
            );
        }
        let other = Entry {
            id: "imgbased-Base-0.1@5".into(),
            ..entries[1].clone()
        };
        assert!(!other.is_of(&vg, &name));
        assert!(!entries[1].is_of(&vg, &"Base-0".parse().unwrap()));
    }

    #[test]
    fn what_grub_alone_reads_is_carried_over() {
        let good = entry("HostVG", "Base-0.1", false, "").unwrap().render();
        let text = good
            + "grub_users  admin,$grub_users\ngrub_arg --unrestricted\ngrub_class a;b\ngrub_class\nother x\n";
        let read = Entry::parse("x", &text).unwrap().unwrap();
        let kept = ["grub_users admin,$grub_users", "grub_arg --unrestricted"];
        assert_eq!(read.grub, kept);
        let again = Entry::new(
            &"HostVG".parse().unwrap(),
            &"Base-0.2".parse().unwrap(),
            false,
            &read.payload(),
        );
        let again = again.unwrap().render();
        assert!(again.ends_with(&(kept.join("\n") + "\n")), "{again}");
    }

    #[test]
    fn another_group_is_named() {
        let entry = entry("my-vg", "Base-0", true, "").unwrap();
        assert_eq!(entry.options, "imgbased.layer=Base-0 imgbased.vg=my-vg");
        assert_eq!(entry.id, "imgbased-my-vg-Base-0");
        assert!(entry.boots(&"my-vg".parse().unwrap(), "Base-0"));
        assert!(!entry.boots(&"HostVG".parse().unwrap(), "Base-0"));
        assert!(entry.title.starts_with("Base-0 factory state ("));
        assert_eq!(entry.payload(), payload(""));
    }

    #[test]
    fn an_entry_names_the_uuid_of_its_group_before_the_words_of_a_trial() {
        let uuid = "68CM0U-m031-EmV1-U9Vn-3yA0-7NL3-j32vhZ";
        let plain = entry("HostVG", "Base-0.1", false, "quiet").unwrap();
        let entry = plain.clone().of_group(&uuid.parse().unwrap());
        assert_eq!(
            entry.options,
            format!("quiet imgbased.layer=Base-0.1 imgbased.vgid={uuid}")
        );
        assert_eq!(entry.clone().on_trial().confirmed(), entry);
        assert!(entry.names_group(uuid) && !plain.names_group(uuid));
        assert!(!entry.names_group(&uuid.replace('6', "7")));
        assert!(plain.names_group("68CM0U-m031-EmV1-U9Vn-3yA0-7NL3-j32vh!"));
        // Another layer can be in another group.
        assert_eq!(entry.payload(), plain.payload());
        assert!(entry.is_of(&"HostVG".parse().unwrap(), &"Base-0.1".parse().unwrap()));
    }

    #[test]
    fn entries_of_others_are_not_ours() {
        for text in [
            "",
            "title Debian\nversion 1\nsort-key d\nlinux /vmlinuz\ninitrd /i\noptions root=/dev/sda1 quiet\n",
            "title x\noptions imgbased.layer=Base-0\n",
        ] {
            assert_eq!(Entry::parse("x", text).unwrap(), None, "{text:?}");
        }
    }

    #[test]
    fn options_that_grub_would_change_are_refused() {
        for options in [
            "a;b",
            "a{b}",
            "a\\b",
            "$a",
            "a'b",
            "a`b",
            "a|b",
            "a&b",
            "a>b",
            "a#b",
            "\"a",
            "a -- b",
            "a\nb",
            "ä",
            "/a/b*",
            "*",
            "hd?",
            "\"/a\"/[b]",
        ] {
            assert!(entry("HostVG", "L", false, options).is_err(), "{options:?}");
        }
        assert!(
            entry(
                "HostVG",
                "L",
                false,
                "a=\"b c\" console=ttyS0,115200n8 x=[1]?*~@% a/* \"/a/*\" ]"
            )
            .is_ok()
        );
    }

    #[test]
    fn what_belongs_to_a_layer_is_taken_out_in_order() {
        assert_eq!(
            without_layer_options(
                "BOOT_IMAGE=(hd0,gpt2)/vmlinuz root=/dev/sda1 ro a=1 rd.lvm.lv=x/y b a=2 imgbased.layer=B imgbased.timeout=5 rootflags=x a=1\n"
            ),
            "a=1 b a=2 a=1"
        );
    }

    #[test]
    fn quoted_options_stay_as_they_are() {
        for options in ["a=\"x ro y\" b=\"c  d\"", "dyndbg=\"file x root=1\" c"] {
            assert_eq!(
                without_layer_options(&format!("ro {options} root=x")),
                options
            );
        }
    }

    #[test]
    fn entries_that_would_break_a_menu_are_refused() {
        let good = entry("HostVG", "Base-0.1", false, "").unwrap();
        for (from, to) in [
            ("title Base-0.1", "title Bob's"),
            ("title Base-0.1", "title {x}"),
            ("linux /imgbased", "linux /$x"),
            ("initrd /imgbased", "initrd /a b;"),
            ("options ", "options a;b "),
        ] {
            let text = good.render().replace(from, to);
            assert!(Entry::parse("x", &text).is_err(), "{to}");
        }
        assert!(Entry::parse("x'y", &good.render()).is_err());
    }

    #[test]
    fn ids_do_not_look_like_boot_counters() {
        let id = |name: &str| id(&"HostVG".parse().unwrap(), &name.parse().unwrap());
        assert_eq!(id("Base-0.1"), "imgbased-Base-0.1");
        assert_eq!(id("node-4.5-1+3"), "imgbased-node-4.5-1+3_");
        assert_eq!(id("rhvh-4.4+5-1"), "imgbased-rhvh-4.4+5-1_");
        assert_eq!(id("a+3-x"), "imgbased-a+3-x");
        assert_eq!(id("0"), "imgbased-0");
        assert_eq!(id("a+"), "imgbased-a+");
    }

    #[test]
    fn menus_show_the_newest_layer_first_and_bases_last() {
        let mut entries: Vec<Entry> = [
            ("Base-0", true),
            ("Base-0.9", false),
            ("Base-1", true),
            ("Base-0.10", false),
            ("Base-1.1", false),
        ]
        .iter()
        .map(|(name, is_base)| entry("HostVG", name, *is_base, "").unwrap())
        .collect();
        Entry::sort(&mut entries);
        let names: Vec<_> = entries.iter().map(|e| e.layer().unwrap()).collect();
        assert_eq!(
            names,
            ["Base-1.1", "Base-0.10", "Base-0.9", "Base-1", "Base-0"]
        );
    }

    #[test]
    fn names_from_images_cannot_break_a_menu() {
        assert_eq!(plain_title("It's \"x\"; $y\n{z}"), "It?s ?x?? ?y??z?");
    }
}
