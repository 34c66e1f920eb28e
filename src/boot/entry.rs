//! Boot Loader Specification entries of type #1, the source of truth for every boot loader.
//! <https://uapi-group.org/specifications/specs/boot_loader_specification/>

use anyhow::{Context, Result, bail, ensure};
use rpm_version::rpm_evr_compare;

use super::arrange::{Arrangement, Placed};
use super::id;
use crate::model::kernel_options::{self, LAYER, VG, VGID, words};
use crate::model::name::{DEFAULT_VG, LvName, VgName, VgUuid};

/// Sort keys: layers come first in the menu, bases last.
const LAYER_SORT_KEY: &str = "imgbased-layer";
const BASE_SORT_KEY: &str = "imgbased-rescue";
/// What the path of our own initramfs begins with.
const STORE: &str = "/imgbased/";
/// How many bytes of a command line reach the kernel: 2047 on x86, less the disk that GRUB names in
/// `BOOT_IMAGE=`.
const LENGTH_MAX: usize = 2000;

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
    /// Our own initramfs; those of others are in `extra`.
    pub initrd: String,
    pub options: String,
    pub extra: Extra,
}

/// What others have put into an entry. It stays there, and goes into the entries of other kernels and new
/// layers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extra {
    /// The paths of `initrd` lines before ours, and after it.
    pub before: Vec<String>,
    pub after: Vec<String>,
    /// All lines with other keys than ours, and comments.
    pub lines: Vec<String>,
}

/// What an entry boots, apart from its name: taken from a base for all its layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootSpec {
    pub version: String,
    pub linux: String,
    pub initrd: String,
    /// Without what belongs to a layer.
    pub options: String,
    pub extra: Extra,
    /// The name of the operating system, for the title.
    pub system: String,
}

impl Entry {
    /// The entries of a layer, or of a base, which boots under a volatile overlay: one for each of its
    /// kernels, in their order. The first has the id of the layer itself; one without an id of its own is
    /// left out.
    ///
    /// Refuses options that a boot loader would change on their way to the kernel.
    pub fn of_kernels(
        vg: &VgName,
        name: &LvName,
        is_base: bool,
        kernels: &Arrangement,
    ) -> Result<Vec<Self>> {
        let mut entries: Vec<Self> = Vec::new();
        for Placed { spec, is_proven } in &kernels.kernels {
            let mut entry = Self::new(vg, name, is_base, spec)?;
            if !is_proven {
                entry = entry.on_trial();
            }
            if !entries.is_empty() {
                entry.id = id::of_other(vg, name, &spec.version);
            }
            if entries.iter().all(|other| other.id != entry.id) {
                entries.push(entry);
            }
        }
        Ok(entries)
    }

    /// The entry of the kernel that boots by default.
    ///
    /// Refuses options that a boot loader would change on their way to the kernel.
    pub fn new(vg: &VgName, name: &LvName, is_base: bool, spec: &BootSpec) -> Result<Self> {
        check_options(&spec.options)?;
        // First: what is too long for a boot loader loses its end.
        let mut options = format!("{LAYER}{name}");
        if vg.as_str() != DEFAULT_VG {
            options += &format!(" {VG}{vg}");
        }
        if !spec.options.is_empty() {
            options += &format!(" {}", spec.options);
        }
        let kind = if is_base { " factory state" } else { "" };
        let entry = Self {
            id: id::of_layer(vg, name),
            title: format!("{name}{kind} ({}, Linux {})", spec.system, spec.version),
            version: spec.version.clone(),
            sort_key: if is_base {
                BASE_SORT_KEY
            } else {
                LAYER_SORT_KEY
            }
            .to_owned(),
            linux: spec.linux.clone(),
            initrd: spec.initrd.clone(),
            options,
            extra: spec.extra.clone(),
        };
        let group = " ".len() + VGID.len() + VgUuid::LENGTH;
        let length = entry.clone().on_trial().length() + group;
        ensure!(
            length <= LENGTH_MAX,
            "the kernel options of {name} have {length} bytes together with what boot loaders and trials \
             add, and {LENGTH_MAX} reach the kernel; make /etc/kernel/cmdline {} bytes shorter",
            length - LENGTH_MAX
        );
        Ok(entry)
    }

    /// How many bytes of the kernel command line the entry needs.
    fn length(&self) -> usize {
        "BOOT_IMAGE= ".len() + self.linux.len() + self.options.len()
    }

    /// How many bytes the kernel command line is too long, if it is.
    pub fn excess(&self) -> Option<usize> {
        self.length()
            .checked_sub(LENGTH_MAX + 1)
            .map(|more| more + 1)
    }

    /// The same entry, which boots a layer of this group only: names of groups are not unique.
    pub fn of_group(mut self, uuid: &VgUuid) -> Self {
        self.options = kernel_options::of_group(&self.options, uuid.as_str());
        self
    }

    /// The entry of the same layer or base when its group is called `vg`; nothing if we did not write this one.
    pub fn moved_to(&self, vg: &VgName, uuid: Option<&VgUuid>) -> Option<Self> {
        let (old, name) = self.place()?;
        let id = if self.id == id::of_layer(&old, &name) {
            id::of_layer(vg, &name)
        } else {
            id::of_other(vg, &name, &self.version)
        };
        let vg = Some(vg.as_str()).filter(|vg| *vg != DEFAULT_VG);
        let vg = vg.map(|vg| format!("{VG}{vg}"));
        let uuid = uuid.map(|uuid| format!("{VGID}{uuid}"));
        let group: Vec<String> = vg.into_iter().chain(uuid).collect();
        Some(Self {
            id,
            options: kernel_options::moved(&self.options, name.as_str(), &group),
            ..self.clone()
        })
    }

    /// The group and the layer or base that we wrote this entry for; nothing if others did.
    pub fn place(&self) -> Option<(VgName, LvName)> {
        let (vg, name) = (self.vg().parse().ok()?, self.layer()?.parse().ok()?);
        self.is_of(&vg, &name).then_some((vg, name))
    }

    /// The UUID of its group, if the entry names it.
    pub fn vgid(&self) -> Option<&str> {
        kernel_options::value(&self.options, VGID)
    }

    /// What this entry boots, for another one that boots the same.
    pub fn spec(&self) -> BootSpec {
        let system = self
            .title
            .split_once(" (")
            .and_then(|(_, rest)| rest.rsplit_once(", Linux "))
            .map_or("Linux", |(system, _)| system);
        BootSpec {
            version: self.version.clone(),
            linux: self.linux.clone(),
            initrd: self.initrd.clone(),
            options: kernel_options::without_ours(&self.options),
            extra: self.extra.clone(),
            system: system.to_owned(),
        }
    }

    /// The same entry for a layer that has never come up.
    pub fn on_trial(mut self) -> Self {
        self.options = kernel_options::on_trial(&self.options);
        self
    }

    /// The same entry for a layer that has come up, or that nothing else could be booted for.
    pub fn confirmed(mut self) -> Self {
        self.options = kernel_options::confirmed(&self.options);
        self
    }

    pub fn is_trial(&self) -> bool {
        kernel_options::is_trial(&self.options)
    }

    /// The layer or base that this entry boots: the last `imgbased.layer=`, as in the initramfs.
    pub fn layer(&self) -> Option<&str> {
        kernel_options::value(&self.options, LAYER)
    }

    /// The volume group that the layer is in.
    pub fn vg(&self) -> &str {
        kernel_options::value(&self.options, VG).unwrap_or(DEFAULT_VG)
    }

    /// Whether this entry names its group by this UUID, or cannot: [`VgUuid`] tells why.
    pub fn names_group(&self, uuid: &str) -> bool {
        self.vgid() == Some(uuid) || uuid.parse::<VgUuid>().is_err()
    }

    /// Whether this entry boots the same files.
    pub fn boots_kernel(&self, spec: &BootSpec) -> bool {
        self.version == spec.version && self.linux == spec.linux && self.initrd == spec.initrd
    }

    /// Whether this entry boots that layer or base of that group.
    pub fn boots(&self, vg: &VgName, layer: &str) -> bool {
        self.vg() == vg.as_str() && self.layer() == Some(layer)
    }

    /// Whether we wrote this entry for that layer or base of that group.
    pub fn is_of(&self, vg: &VgName, name: &LvName) -> bool {
        self.boots(vg, name.as_str())
            && (self.id == id::of_layer(vg, name)
                || self.id == id::of_other(vg, name, &self.version))
    }

    /// Reads an entry; nothing if it does not boot a layer. Refuses one that does, but that cannot
    /// be put into a menu as it is.
    pub fn parse(id: &str, text: &str) -> Result<Option<Self>> {
        let Some(entry) = Self::read(id, text) else {
            return Ok(None);
        };
        let check = || -> Result<()> {
            if let Some(bad) = entry.title.chars().find(|c| !is_plain(*c)) {
                bail!("its title has {bad:?}, which would end an entry of GRUB's menu");
            }
            for path in entry.initrds().chain([entry.id.as_str(), &entry.linux]) {
                if let Some(bad) = path.chars().find(|c| !is_of_path(*c)) {
                    bail!(
                        "its name or path {path} has {bad:?}, which would end an entry of GRUB's menu"
                    );
                }
            }
            check_options(&entry.options)
        };
        check().with_context(|| format!("the boot entry {id} is not used"))?;
        Ok(Some(entry))
    }

    /// The first of equal keys counts. Several lines of options are one.
    fn read(id: &str, text: &str) -> Option<Self> {
        const KEYS: [&str; 4] = ["title", "version", "sort-key", "linux"];
        // Most entries of others end here.
        if !text.contains(LAYER) {
            return None;
        }
        let mut values = [const { None }; KEYS.len()];
        let (mut initrds, mut options, mut lines) = (Vec::new(), Vec::new(), Vec::new());
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (key, value) = line.split_once([' ', '\t']).unwrap_or((line, ""));
            let value = value.trim();
            match KEYS.iter().position(|k| *k == key) {
                Some(_) if value.is_empty() => {}
                Some(at) => drop(values[at].get_or_insert(value.to_owned())),
                None if key == "initrd" && value.is_empty() => {}
                None if key == "initrd" => initrds.push(value.to_owned()),
                None if key == "options" => options.push(value),
                None if value.is_empty() || key.starts_with('#') => lines.push(line.to_owned()),
                None => lines.push(format!("{key} {value}")),
            }
        }
        let ours = initrds.iter().position(|path| path.starts_with(STORE));
        let after = initrds.split_off(ours.map_or(initrds.len(), |at| at + 1));
        let [title, version, sort_key, linux] = values;
        let entry = Self {
            id: id.to_owned(),
            title: title?,
            version: version?,
            sort_key: sort_key?,
            linux: linux?,
            initrd: initrds.pop()?,
            options: options.join(" "),
            extra: Extra {
                before: initrds,
                after,
                lines,
            },
        };
        entry.layer().is_some().then_some(entry)
    }

    /// An entry that a menu shows, by what is there of it.
    pub fn of_menu(
        id: &str,
        title: &str,
        linux: &str,
        initrds: &[String],
        options: &str,
    ) -> Option<Self> {
        let version = title
            .rsplit_once(", Linux ")
            .map_or("", |(_, version)| version);
        let mut text = format!(
            "title {title}\nversion {}\nsort-key {LAYER_SORT_KEY}\nlinux {linux}\noptions {options}\n",
            version.trim_end_matches(')')
        );
        for path in initrds {
            text += &format!("initrd {path}\n");
        }
        Self::parse(id, &text).ok().flatten()
    }

    /// The paths of all its initramfs images, in the order in which they are loaded.
    pub fn initrds(&self) -> impl Iterator<Item = &str> {
        let Extra { before, after, .. } = &self.extra;
        let all = before.iter().chain([&self.initrd]).chain(after);
        all.map(String::as_str)
    }

    /// The text of the entry's file.
    pub fn render(&self) -> String {
        let mut text = format!(
            "title {}\nversion {}\nsort-key {}\nlinux {}\n",
            self.title, self.version, self.sort_key, self.linux
        );
        for path in self.initrds() {
            text += &format!("initrd {path}\n");
        }
        text += &format!("options {}\n", self.options);
        for line in &self.extra.lines {
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

/// Whether we wrote the text of an entry once, for this layer or base, whatever has become of its options.
pub fn was_ours(text: &str, name: &LvName) -> bool {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
    // A rank may come before the key (src/boot/loader/counting.rs).
    let is_ours = |key: &str| {
        [LAYER_SORT_KEY, BASE_SORT_KEY]
            .iter()
            .any(|k| key.trim().ends_with(k))
    };
    value("sort-key ").is_some_and(is_ours)
        && value("title ").and_then(|title| title.split(' ').next()) == Some(name.as_str())
}

/// GRUB reads options as a script: other characters than these would end the command, name a
/// variable or vanish.
pub fn check_options(options: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || " _.,:=+@%~*?[]/\"-^!".contains(c);
    if let Some(bad) = options.chars().find(|c| !allowed(*c)) {
        bail!("kernel options {options:?} contain {bad:?}, which GRUB would not pass on unchanged");
    }
    ensure!(
        options.matches('"').count().is_multiple_of(2),
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

/// A title that GRUB's script takes as one: with other quotes, and question marks for the rest of what would end it.
fn plain(text: &str) -> String {
    let shown = |c| match c {
        '\'' => '’',
        '"' => '”',
        c if is_plain(c) => c,
        _ => '?',
    };
    text.chars().map(shown).collect()
}

/// Whether a menu shows it as it is. Boot loaders read UTF-8.
fn is_plain(c: char) -> bool {
    c.is_alphanumeric() || " _.,:+@~/()[]?-’”".contains(c)
}

/// Whether GRUB's script takes a word with that character as one.
fn is_of_path(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_.,:+@~/-".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(options: &str) -> BootSpec {
        BootSpec {
            version: "6.12.1-amd64".into(),
            linux: "/imgbased/vmlinuz-6.12.1-amd64-0123".into(),
            initrd: "/imgbased/initrd-6.12.1-amd64-4567".into(),
            options: options.into(),
            extra: Extra::default(),
            system: "Debian GNU/Linux 13 (trixie)".into(),
        }
    }

    fn entry(vg: &str, name: &str, is_base: bool, options: &str) -> Result<Entry> {
        Entry::new(
            &vg.parse().unwrap(),
            &name.parse().unwrap(),
            is_base,
            &spec(options),
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
             options imgbased.layer=Base-0.1 console=ttyS0 quiet\n"
        );
        let parsed = Entry::parse(&entry.id, &entry.render()).unwrap();
        assert_eq!(parsed, Some(entry.clone()));
        assert_eq!(entry.layer(), Some("Base-0.1"));
        assert_eq!(entry.spec(), spec("console=ttyS0 quiet"));
    }

    #[test]
    fn an_entry_on_trial_boots_the_same() {
        let entry = entry("HostVG", "Base-0.1", false, "panic=5 quiet").unwrap();
        let trial = entry.clone().on_trial();
        assert!(trial.is_trial() && !entry.is_trial());
        assert_eq!(trial.spec(), entry.spec());
        assert_eq!(trial.confirmed(), entry);
    }

    #[test]
    fn options_that_would_be_cut_off_are_refused_with_their_length() {
        let uuid = "68CM0U-m031-EmV1-U9Vn-3yA0-7NL3-j32vhZ".parse().unwrap();
        let long = |count: usize| {
            let entry = entry("HostVG", "Base-0.1", false, &"x".repeat(count))?;
            anyhow::Ok(entry.of_group(&uuid))
        };
        let most = (1..LENGTH_MAX)
            .rev()
            .find(|count| long(*count).is_ok())
            .unwrap();
        assert_eq!(long(most).unwrap().on_trial().length(), LENGTH_MAX);
        assert_eq!(long(most).unwrap().excess(), None);
        let error = long(most + 3).unwrap_err().to_string();
        assert!(
            error.contains("have 2003 bytes") && error.contains("cmdline 3 bytes shorter"),
            "{error}"
        );
        let mut edited = long(most).unwrap().on_trial();
        edited.options += " more";
        assert_eq!(edited.excess(), Some(5));
    }

    #[test]
    fn each_kernel_has_an_entry_of_its_own() {
        let (vg, name): (VgName, LvName) = ("HostVG".parse().unwrap(), "Base-0.1".parse().unwrap());
        let kernels = ["6.12.240", "6.12.80", "6.1+7"].map(|version| BootSpec {
            version: version.into(),
            ..spec("quiet")
        });
        let entries =
            Entry::of_kernels(&vg, &name, false, &Arrangement::plain(kernels.into())).unwrap();
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
    fn what_others_have_put_into_an_entry_stays_and_is_carried_over() {
        let ours = entry("HostVG", "Base-0.1", false, "quiet")
            .unwrap()
            .render();
        let text = format!(
            "# mine\ninitrd /amd-ucode.img\n{ours}initrd\t/debug.img\n\nmachine-id\t x\n\
             options a \ngrub_users  admin,$grub_users\nodd\n"
        );
        let read = Entry::parse("x", &text).unwrap().unwrap();
        assert_eq!(read.initrd, spec("").initrd);
        assert_eq!(read.options, "imgbased.layer=Base-0.1 quiet a");
        let (vg, name) = ("HostVG".parse().unwrap(), "Base-0.2".parse().unwrap());
        let again = Entry::new(&vg, &name, false, &read.spec()).unwrap();
        for entry in [&read, &again] {
            let text = entry.render();
            let (_, end) = text.split_once("-0123\n").unwrap();
            let end = end.replace(&entry.options, "");
            assert_eq!(
                end,
                "initrd /amd-ucode.img\ninitrd /imgbased/initrd-6.12.1-amd64-4567\n\
                 initrd /debug.img\noptions \n# mine\nmachine-id x\n\
                 grub_users admin,$grub_users\nodd\n"
            );
            let back = Entry::parse(&entry.id, &text).unwrap();
            assert_eq!(back.as_ref(), Some(entry));
        }
    }

    #[test]
    fn another_group_is_named() {
        let entry = entry("my-vg", "Base-0", true, "").unwrap();
        assert_eq!(entry.options, "imgbased.layer=Base-0 imgbased.vg=my-vg");
        assert_eq!(entry.id, "imgbased-my-vg-Base-0");
        assert!(entry.boots(&"my-vg".parse().unwrap(), "Base-0"));
        assert!(!entry.boots(&"HostVG".parse().unwrap(), "Base-0"));
        assert!(entry.title.starts_with("Base-0 factory state ("));
        assert_eq!(entry.spec(), spec(""));
    }

    #[test]
    fn an_entry_names_the_uuid_of_its_group_before_the_words_of_a_trial() {
        let uuid = "68CM0U-m031-EmV1-U9Vn-3yA0-7NL3-j32vhZ";
        let plain = entry("HostVG", "Base-0.1", false, "quiet").unwrap();
        let entry = plain.clone().of_group(&uuid.parse().unwrap());
        assert_eq!(
            entry.options,
            format!("imgbased.layer=Base-0.1 imgbased.vgid={uuid} quiet")
        );
        assert_eq!(entry.clone().on_trial().confirmed(), entry);
        assert!(entry.names_group(uuid) && !plain.names_group(uuid));
        assert!(!entry.names_group(&uuid.replace('6', "7")));
        assert!(plain.names_group("68CM0U-m031-EmV1-U9Vn-3yA0-7NL3-j32vh!"));
        // Another layer can be in another group.
        assert_eq!(entry.spec(), plain.spec());
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
        for (name, title) in [
            ("It's \"x\"; $y\n{z}", "It’s ”x”? ?y??z?"),
            ("Système É 1.0 (日本)", "Système É 1.0 (日本)"),
        ] {
            assert_eq!(plain_title(name), title);
            let text = entry("HostVG", "Base-0.1", false, "").unwrap().render();
            let text = text.replace("title Base-0.1", &format!("title {title}"));
            assert!(Entry::parse("x", &text).is_ok(), "{title}");
        }
    }
}
