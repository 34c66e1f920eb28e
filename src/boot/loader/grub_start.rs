//! What GRUB does when it starts, told beforehand from its files. The tests hold this against GRUB itself.

use super::grub_menu::{FIRST, MENU, NONE, TRIAL};
use super::grubenv::GrubEnv;
use crate::boot::id;
use crate::boot::next::{Next, Why};
use crate::model::kernel_options;

/// An entry of a menu.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Item {
    pub id: String,
    pub title: String,
    pub linux: String,
    pub initrds: Vec<String>,
    pub options: String,
    /// Whether it restarts by itself.
    pub is_trial: bool,
    /// Whether everybody may boot it where superusers are set.
    pub is_open: bool,
}

/// The files that GRUB reads.
pub struct Facts<'a> {
    /// grub.cfg with the files that it sources, but for our menu; `None` if it is not installed yet.
    pub config: Option<&'a str>,
    pub config_path: &'a str,
    /// Our menu, or the entries where GRUB lists them itself; `None` if there is no menu yet.
    pub items: Option<&'a [Item]>,
    pub reads_entries: bool,
    /// The variables that GRUB loads.
    pub env: &'a GrubEnv,
    /// Whether a file is on the boot partition, and holds something.
    pub has_file: &'a dyn Fn(&str) -> bool,
    /// Whether there is a file of an entry with this id.
    pub has_entry: &'a dyn Fn(&str) -> bool,
}

/// The entries of our menu.
pub fn items(menu: &str) -> Vec<Item> {
    let mut found: Vec<Item> = Vec::new();
    for line in menu.lines() {
        if let Some(head) = line.strip_prefix("menuentry '") {
            let title = head.split('\'').next().unwrap_or_default();
            let id = head.rsplit_once("--id '").map_or("", |(_, id)| id);
            found.push(Item {
                id: id.split('\'').next().unwrap_or_default().to_owned(),
                title: title.to_owned(),
                is_open: head.contains(" --unrestricted "),
                ..Item::default()
            });
        }
        let words = line
            .trim_start()
            .trim_start_matches("if ")
            .split([' ', ';']);
        let mut paths = words.filter_map(|word| word.strip_prefix("$imgbased_boot"));
        let Some(item) = found.last_mut() else {
            continue;
        };
        if line.contains("linux $imgbased_boot") {
            paths.next().unwrap_or_default().clone_into(&mut item.linux);
            let line = line.trim_end_matches("; then");
            let options = line
                .split_once(&item.linux)
                .map_or("", |(_, options)| options);
            options.trim().clone_into(&mut item.options);
            item.is_trial = kernel_options::is_trial(&item.options);
        } else if line.contains("initrd $imgbased_boot") {
            item.initrds = paths.map(str::to_owned).collect();
        }
    }
    found.retain(|item| ![FIRST, TRIAL, NONE].contains(&item.id.as_str()));
    found
}

/// What Fedora and EL have in each grub.cfg: a password, if a file beside it sets this.
const USER_PASSWORD: &str = "GRUB2_PASSWORD";
const USER_FILES: [&str; 2] = ["/grub2/user.cfg", "/grub/user.cfg"];

/// What GRUB does next.
pub fn next(facts: &Facts) -> Next {
    let mut config = facts.config.map(Config::read).unwrap_or_default();
    if config.superusers == Superusers::ByFile
        && USER_FILES.iter().any(|path| (facts.has_file)(path))
    {
        config.superusers = Superusers::Set;
    }
    if facts.config.is_some() && !config.shows_menu && !facts.reads_entries {
        return Next::Hidden(format!(
            "{} does not show {MENU}, so GRUB boots none of its entries; run update-grub, or take \
             /usr/share/imgbased-helper/grub.cfg",
            facts.config_path
        ));
    }
    let Some(items) = facts.items else {
        // Not made yet, so that nothing of it comes into play.
        let saved = variable(facts, "saved_entry");
        let name = config.default.as_deref().unwrap_or(saved);
        let other = config.other(name).or(config.others.first());
        return other.map_or(Next::Wait, |other| Next::Other(other.id.clone()));
    };
    let (first, why) = chosen(facts, &config);
    let good = items.iter().find(|item| !item.is_trial);
    // As the head of the menu looks for them (grub_menu.rs).
    for (name, why) in [
        (first.as_str(), why),
        (variable(facts, "saved_entry"), Why::Default),
        (good.map_or("", |item| &item.id), Why::Instead),
    ] {
        if !name.starts_with(|c: char| !c.is_ascii_digit()) {
            continue;
        }
        let mut known = items.iter();
        match known.find(|item| item.id == name || item.title == name) {
            Some(item) if !item.is_trial || matches!(why, Why::Once | Why::Try) => {
                return boot(facts, &config, item, why);
            }
            Some(_) => {}
            None if id::is_ours(name) => {
                if facts.reads_entries && (facts.has_entry)(name) {
                    let id = name.to_owned();
                    return Next::Entry { id, why };
                }
            }
            None => return other(facts, &config, name, good),
        }
    }
    Next::Wait
}

/// The entry of another system that boots while no default was ever set, as a default names it: the host has
/// that system, and is about to get layers.
pub fn unset_default(facts: &Facts) -> Option<String> {
    let text = facts.config?;
    // That is for hosts whose systems are all layers.
    if facts.reads_entries || is_our_config(text) {
        return None;
    }
    let config = Config::read(text);
    let decides = config.shows_menu && facts.items.is_some();
    if decides && !matches!(next(facts), Next::Other(_)) {
        return None;
    }
    config.system(config.default.as_deref().unwrap_or_default())
}

fn is_our_config(text: &str) -> bool {
    text.contains(&format!("--id '{FIRST}'"))
}

/// What is asked for first, and why.
fn chosen(facts: &Facts, config: &Config) -> (String, Why) {
    let once = variable(facts, "next_entry");
    if config.boots_once && !once.is_empty() {
        return (once.to_owned(), Why::Once);
    }
    let number = |name| variable(facts, name).parse::<u32>().unwrap_or(0);
    let trial = variable(facts, "imgbased_trial");
    if !trial.is_empty() && number("imgbased_tried") < number("imgbased_tries") {
        return (trial.to_owned(), Why::Try);
    }
    let saved = || variable(facts, "saved_entry").to_owned();
    // grub/09_imgbased does so.
    let default = config.default.clone().filter(|default| default != "0");
    (default.unwrap_or_else(saved), Why::Default)
}

fn variable<'a>(facts: &Facts<'a>, name: &str) -> &'a str {
    facts.env.get(name).unwrap_or_default()
}

fn boot(facts: &Facts, config: &Config, item: &Item, why: Why) -> Next {
    let id = item.id.clone();
    if config.superusers == Superusers::Set && !item.is_open {
        return Next::Password(id);
    }
    let has_kernel = (facts.has_file)(&item.linux);
    let has_initrds = item.initrds.iter().all(|path| (facts.has_file)(path));
    match (item.is_trial, has_kernel, has_initrds) {
        (_, true, true) => Next::Entry { id, why },
        (true, ..) => Next::Restart(id),
        (false, true, false) => Next::KernelOnly(id),
        (false, false, _) => Next::Stop(id),
    }
}

/// An entry of another system, or what GRUB takes where that is not there: its first.
fn other(facts: &Facts, config: &Config, name: &str, good: Option<&Item>) -> Next {
    if let Some(other) = config.other(name) {
        return Next::Other(other.id.clone());
    }
    // Its file may be beside ours. Without our grub.cfg, GRUB alone knows which of those that it lists is first.
    let has_first = facts.config.is_some_and(is_our_config);
    if facts.reads_entries && (!has_first || (facts.has_entry)(name)) {
        return Next::Other(name.to_owned());
    }
    match (config.others.first().filter(|other| other.is_first), good) {
        (Some(first), _) => Next::Other(first.id.clone()),
        (None, Some(good)) if facts.reads_entries && config.superusers == Superusers::Set => {
            Next::Password(good.id.clone())
        }
        (None, Some(good)) => boot(facts, config, good, Why::Instead),
        (None, None) => Next::Wait,
    }
}

/// Who has a password, without which no entry is booted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Superusers {
    None,
    /// Whoever a file beside grub.cfg says, which grub2-setpassword(8) writes.
    ByFile,
    Set,
}

/// What matters of grub.cfg. It is a script, of which the usual words are known.
struct Config {
    shows_menu: bool,
    boots_once: bool,
    superusers: Superusers,
    /// What the script itself names as the default.
    default: Option<String>,
    others: Vec<Other>,
}

/// A menu entry, or a submenu, of another system.
struct Other {
    /// Its title if it has no id.
    id: String,
    title: String,
    /// Whether it comes before ours.
    is_first: bool,
    /// How many submenus it is in.
    depth: usize,
    /// Whether it starts a system, or is a submenu with an entry that does: not the firmware's setup, nor a
    /// test of the memory.
    is_system: bool,
}

impl Default for Config {
    /// As of our own grub.cfg.
    fn default() -> Self {
        Self {
            shows_menu: true,
            boots_once: true,
            superusers: Superusers::None,
            default: None,
            others: Vec::new(),
        }
    }
}

impl Config {
    fn read(text: &str) -> Self {
        let mut config = Self {
            shows_menu: false,
            boots_once: false,
            ..Self::default()
        };
        // Whether each block that is open is a submenu.
        let mut blocks: Vec<bool> = Vec::new();
        // The conditions that are open.
        let mut conditions: Vec<&str> = Vec::new();
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let depth = blocks.iter().filter(|is_submenu| **is_submenu).count();
            if line.starts_with('}') {
                blocks.pop();
            }
            if line.ends_with('{') {
                blocks.push(line.starts_with("submenu "));
            }
            let starts = ["linux", "linuxefi", "chainloader"];
            let is_system = line
                .split_whitespace()
                .next()
                .is_some_and(|command| starts.contains(&command))
                && !line.contains("memtest");
            if is_system && !blocks.is_empty() {
                config.mark_system();
            }
            let setting = |name: &str| {
                let value = line
                    .strip_prefix("set ")
                    .unwrap_or(line)
                    .strip_prefix(name)?;
                Some(value.strip_prefix('=')?.trim_matches(['"', '\'']))
            };
            config.shows_menu |= line.contains(MENU) || line.contains("*.cfg");
            config.boots_once |= line.contains("next_entry");
            if line.starts_with("if ") {
                conditions.push(line);
            } else if line == "fi" {
                conditions.pop();
            }
            if setting("superusers").is_some_and(|names| !names.is_empty()) {
                let is_by_file = conditions.iter().any(|line| line.contains(USER_PASSWORD));
                let found = if is_by_file {
                    Superusers::ByFile
                } else {
                    Superusers::Set
                };
                config.superusers = config.superusers.max(found);
            }
            if let Some(value) = setting("default").filter(|value| !value.contains('$')) {
                config.default = Some(value.to_owned());
            }
            let rest = ["menuentry ", "submenu "]
                .iter()
                .find_map(|key| line.strip_prefix(key));
            if let Some(rest) = rest {
                let quoted: Vec<&str> = rest.split(['\'', '"']).collect();
                let title = quoted.get(1).copied().unwrap_or_default();
                let key = ["--id ", "$menuentry_id_option "];
                let id = key.iter().find_map(|key| rest.split_once(key));
                let id =
                    id.and_then(|(_, id)| id.split(['\'', '"', ' ']).find(|id| !id.is_empty()));
                if id == Some(FIRST) {
                    continue;
                }
                config.others.push(Other {
                    id: id.unwrap_or(title).to_owned(),
                    title: title.to_owned(),
                    is_first: !config.shows_menu,
                    depth,
                    is_system: false,
                });
            }
        }
        config
    }

    /// The last entry starts a system, and so do the submenus around it.
    fn mark_system(&mut self) {
        let mut depth = usize::MAX;
        for other in self.others.iter_mut().rev() {
            if other.depth < depth {
                other.is_system = true;
                depth = other.depth;
            }
        }
    }

    /// The system that a default means, by ids and titles or by places, through submenus as GRUB writes them:
    /// `1>2`. Where there is no such entry, it is the first one.
    fn system(&self, default: &str) -> Option<String> {
        let mut level = &self.others[..];
        let mut path = Vec::new();
        for (depth, name) in default.split('>').enumerate() {
            let mut entries = level.iter().enumerate().filter(|(_, o)| o.depth == depth);
            let found = match name.parse::<usize>() {
                Ok(place) => entries.nth(place),
                Err(_) => entries.find(|(_, other)| other.id == name || other.title == name),
            };
            let Some((at, other)) = found else {
                let mut systems = self.others.iter().filter(|other| other.depth == 0);
                return Some(systems.find(|other| other.is_system)?.id.clone());
            };
            if !other.is_system {
                return None;
            }
            path.push(other.id.as_str());
            level = &level[at + 1..];
            let end = level.iter().position(|other| other.depth <= depth);
            level = &level[..end.unwrap_or(level.len())];
        }
        Some(path.join(">"))
    }

    /// The entry with this id or title, or the submenu where the path to an entry begins.
    fn other(&self, name: &str) -> Option<&Other> {
        let first = name.split('>').next().unwrap_or_default();
        let mut others = self.others.iter().filter(|other| other.depth == 0);
        others.find(|other| other.id == first || other.title == first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::entry::{Entry, Extra};
    use crate::boot::loader::grub_menu;

    fn entry(name: &str) -> Entry {
        Entry {
            id: format!("imgbased-{name}"),
            title: format!("{name} (Debian)"),
            version: "6.1".into(),
            sort_key: "imgbased-layer".into(),
            linux: format!("/imgbased/vmlinuz-{name}"),
            initrd: format!("/imgbased/initrd-{name}"),
            options: format!("imgbased.layer={name} quiet"),
            extra: Extra::default(),
        }
    }

    #[test]
    fn the_entries_of_a_menu_are_read_back() {
        let mut open = entry("Base-0.2").on_trial();
        open.extra.lines = vec!["grub_arg --unrestricted".into()];
        open.extra.before = vec!["/ucode".into()];
        let found = items(&grub_menu::render(&[open.clone(), entry("Base-0.1")]));
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].initrds, ["/ucode", "/imgbased/initrd-Base-0.2"]);
        assert_eq!((found[0].is_trial, found[0].is_open), (true, true));
        assert_eq!((found[1].is_trial, found[1].is_open), (false, false));
        assert_eq!(found[1].linux, "/imgbased/vmlinuz-Base-0.1");
        assert_eq!(
            [&found[0].options, &found[1].options],
            [&open.options, &entry("Base-0.1").options]
        );
    }

    /// The next start of a host with Base-0.2 on trial and Base-0.1.
    fn start(config: Option<&str>, variables: &[(&str, &str)]) -> String {
        start_with(config, variables, false)
    }

    /// The same where GRUB reads the entries itself, and has that of another system, debian.
    fn start_listed(config: &str, default: &str) -> String {
        start_with(Some(config), &[("saved_entry", default)], true)
    }

    fn start_with(config: Option<&str>, variables: &[(&str, &str)], reads_entries: bool) -> String {
        let menu = grub_menu::render(&[entry("Base-0.2").on_trial(), entry("Base-0.1")]);
        let mut env = GrubEnv::default();
        for (name, value) in variables {
            env.set(name, value);
        }
        let next = next(&Facts {
            config,
            config_path: "grub.cfg",
            items: Some(&items(&menu)),
            reads_entries,
            env: &env,
            has_file: &|_| true,
            has_entry: &|id| id == "debian",
        });
        next.to_string()
    }

    /// As `01_users` of Fedora and EL has it in each grub.cfg.
    #[test]
    fn a_password_counts_where_the_file_is_there_that_sets_it() {
        let ours = include_str!("../../../grub/grub.cfg");
        let users = "if [ -f ${prefix}/user.cfg ]; then\n  source ${prefix}/user.cfg\n  \
                     if [ -n \"${GRUB2_PASSWORD}\" ]; then\n    set superusers=\"root\"\n    \
                     export superusers\n    password_pbkdf2 root ${GRUB2_PASSWORD}\n  fi\nfi\n";
        let others = "set superusers=\"admin\"\n";
        let menu = grub_menu::render(&[entry("Base-0.1")]);
        let mut env = GrubEnv::default();
        env.set("saved_entry", "imgbased-Base-0.1");
        for (before, has_user_file, is_locked) in [
            (users.to_owned(), false, false),
            (users.to_owned(), true, true),
            (format!("{users}{others}"), false, true),
            (format!("if true; then\n{others}fi\n{users}"), false, true),
            (String::new(), true, false),
        ] {
            let config = before.clone() + ours;
            let next = next(&Facts {
                config: Some(&config),
                config_path: "grub.cfg",
                items: Some(&items(&menu)),
                reads_entries: false,
                env: &env,
                has_file: &|path| has_user_file || !path.ends_with("user.cfg"),
                has_entry: &|_| false,
            });
            let locked = matches!(next, Next::Password(_));
            assert_eq!(locked, is_locked, "{before} {has_user_file}");
        }
    }

    #[test]
    fn a_configuration_decides_with_its_variables() {
        let ours = include_str!("../../../grub/grub.cfg");
        let part = include_str!("../../../grub/09_imgbased");
        let stock = "set default=\"0\"\nmenuentry 'Debian' --id 'debian' {\n";
        let fixed =
            format!("set default=\"debian\"\n{part}\n{stock}").replace("\"0\"\nm", "\"debian\"\nm");
        let locked = format!("set superusers=\"admin\"\n{ours}");
        let saved = [("saved_entry", "imgbased-Base-0.1")];
        let trial = [
            ("saved_entry", "imgbased-Base-0.1"),
            ("imgbased_trial", "imgbased-Base-0.2"),
            ("imgbased_tries", "2"),
            ("imgbased_tried", "1"),
        ];
        for (config, variables, expected) in [
            (ours, &saved[..], "imgbased-Base-0.1"),
            (ours, &trial[..], "imgbased-Base-0.2, on trial"),
            (
                ours,
                &[("saved_entry", "0")],
                "imgbased-Base-0.1, as the default is not there",
            ),
            (
                ours,
                &[("saved_entry", "imgbased-Base-0.2")],
                "imgbased-Base-0.1, as the default is not there",
            ),
            (&fixed, &saved[..], "another system, debian"),
            (
                stock,
                &saved[..],
                "grub.cfg does not show imgbased.cfg, so GRUB",
            ),
            (
                &locked,
                &saved[..],
                "GRUB asks for a name and a password before imgbased-Base-0.1",
            ),
        ] {
            let next = start(Some(config), variables);
            assert!(next.starts_with(expected), "{next} and not {expected}");
        }
        assert_eq!(start(None, &saved), "imgbased-Base-0.1");
    }

    #[test]
    fn another_system_goes_on_booting_where_no_default_was_set() {
        let ours = include_str!("../../../grub/grub.cfg");
        let part = include_str!("../../../grub/09_imgbased");
        let others = "menuentry 'UEFI' $menuentry_id_option 'uefi-firmware' {\n\tfwsetup\n}\n\
                      menuentry 'Memory' {\n\tlinux /memtest.bin\n}\n\
                      menuentry 'Debian' $menuentry_id_option 'simple' {\n\tlinux /vmlinuz\n}\n\
                      submenu 'More' $menuentry_id_option 'more' {\n\
                      \tmenuentry 'New' $menuentry_id_option 'new' {\n\t\tlinux /new\n\t}\n\
                      \tmenuentry 'Old' $menuentry_id_option 'old' {\n\t\tlinux /old\n\t}\n}\n\
                      menuentry 'Other' {\n\tchainloader /efi\n}\n";
        let setup = "menuentry 'UEFI' {\n\tfwsetup\n}\n";
        let menu = grub_menu::render(&[entry("Base-0")]);
        let menu = items(&menu);
        for (default, part, others, items, expected) in [
            ("0", "", others, None, None),
            ("2", "", others, None, Some("simple")),
            ("9", "", others, None, Some("simple")),
            ("gone", "", others, None, Some("simple")),
            ("3", "", others, None, Some("more")),
            ("3>1", "", others, None, Some("more>old")),
            ("More>New", "", others, None, Some("more>new")),
            ("4", "", others, None, Some("Other")),
            ("${saved_entry}", part, others, None, Some("simple")),
            ("3>1", part, others, None, Some("more>old")),
            // Our menu decides, and has another.
            ("2", part, others, Some(&menu[..]), None),
            ("old", part, others, Some(&menu[..]), None),
            ("simple", part, others, Some(&menu[..]), Some("simple")),
            // It is not shown.
            ("2", "", others, Some(&menu[..]), Some("simple")),
            ("0", part, setup, None, None),
            ("0", ours, others, None, None),
        ] {
            let config = format!("set default=\"{default}\"\n{part}\n{others}");
            let found = unset_default(&Facts {
                config: Some(&config),
                config_path: "grub.cfg",
                items,
                reads_entries: false,
                env: &GrubEnv::default(),
                has_file: &|_| true,
                has_entry: &|_| false,
            });
            assert_eq!(found.as_deref(), expected, "{default}");
        }
    }

    /// The first was seen when a real GRUB was started: it took the first of the entries, on trial or not.
    #[test]
    fn a_default_of_another_system_that_is_gone_is_no_entry_on_trial() {
        let ours = include_str!("../../../grub/grub.cfg");
        let part = "menuentry 'Other' --id 'other' {\n";
        for (config, default, expected) in [
            (
                ours.to_owned(),
                "Advanced options>Debian",
                "imgbased-Base-0.1, as the default is not there",
            ),
            (ours.to_owned(), "debian", "another system, debian"),
            (format!("{part}{ours}"), "gone", "another system, other"),
            (
                format!("set superusers=\"admin\"\n{ours}"),
                "gone",
                "GRUB asks for a name and a password before imgbased-Base-0.1",
            ),
            // GRUB alone knows.
            (
                "insmod blscfg\nblscfg\n".to_owned(),
                "gone",
                "another system, gone",
            ),
        ] {
            let next = start_listed(&config, default);
            assert!(next.starts_with(expected), "{next} and not {expected}");
        }
    }
}
