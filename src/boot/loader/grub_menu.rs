//! The menu for a GRUB that cannot read entries itself (2.12 and before), and what it counts for each GRUB.

use crate::boot::entry::Entry;
use crate::boot::files::ENTRIES;
use crate::boot::id::PREFIX;

/// The name of the menu, beside grub.cfg.
pub const MENU: &str = "imgbased.cfg";

/// Whether a configuration has GRUB read the entries itself, and whether it can show the menu: one that
/// reads no entries can in ways that only GRUB knows.
pub fn reads(config: &str) -> (bool, bool) {
    let commands = config
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'));
    let words = || {
        commands
            .clone()
            .flat_map(|line| line.split([' ', '\t', ';', '/']))
    };
    let reads_entries = words().any(|word| word == "blscfg");
    (
        reads_entries,
        !reads_entries || words().any(|word| word == MENU),
    )
}

/// The head of the menu. Paths in entries are relative to the filesystem that GRUB's own files are
/// on, whatever `root` is set to by then. An entry on trial is booted as long as tries are left and GRUB
/// can count them; what boots once, by our grub.cfg or that of grub-mkconfig, comes before it.
const HEAD: &str = r#"# Written by imgbased-helper from the entries in loader/entries; changes here are lost.
regexp --set=1:imgbased_boot '^(\([^)]+\))' "$prefix"
export imgbased_boot
set imgbased_chosen=
if [ -n "$once" -o "$boot_once" = "true" ]; then
    set imgbased_chosen=y
elif [ -n "$imgbased_trial" ]; then
    if [ "$imgbased_tried" -lt "$imgbased_tries" ]; then
        # One more; GRUB cannot add.
        set imgbased_last=
        for imgbased_number in 0 1 2 3 4 5 6 7 8 9; do
            if [ "$imgbased_last" = "$imgbased_tried" ]; then
                set imgbased_next="$imgbased_number"
            fi
            set imgbased_last="$imgbased_number"
        done
        set imgbased_tried="$imgbased_next"
        if save_env imgbased_tried; then
            set default="$imgbased_trial"
            set imgbased_chosen=y
        fi
    fi
fi
"#;

/// Looks for the default among the entries of the menu: GRUB would take its first entry where that is
/// gone, which can be one on trial, and count nothing. What is named by its place, which changes with each
/// layer, is as good as gone. Where an entry on trial was not chosen for this one start, the next candidate
/// boots. What another system has put into the menu is known to GRUB alone.
const SEARCH: &str = r#"set imgbased_found=
for imgbased_candidate in "$default" "$saved_entry"@GOOD@; do
    if [ -z "$imgbased_found" ]; then
        set imgbased_kind=
        if regexp '^[^0-9]' "$imgbased_candidate"; then
            set imgbased_kind=other
            if regexp '^@PREFIX@' "$imgbased_candidate"; then
                set imgbased_kind=
                if [ -n "$imgbased_listed" -a -f "$imgbased_boot/@ENTRIES@/$imgbased_candidate.conf" ]; then
                    set imgbased_kind=good
                fi
            fi
            for imgbased_id in@ALL_GOOD@; do
                if [ "$imgbased_id" = "$imgbased_candidate" ]; then
                    set imgbased_kind=good
                fi
            done
            for imgbased_id in@ALL_TRIAL@; do
                if [ "$imgbased_id" = "$imgbased_candidate" ]; then
                    set imgbased_kind="$imgbased_chosen"
                fi
            done
        fi
        if [ -n "$imgbased_kind" ]; then
            set imgbased_found="$imgbased_kind"
            set default="$imgbased_candidate"
        fi
        set imgbased_chosen=
    fi
done
"#;

/// The ids of entries that are not in loader/entries; those there have a hyphen after the first word: of an
/// entry on trial where GRUB has listed the entries itself, of the first that has come up where the default is
/// of another system, and of one that boots nothing.
pub const FIRST: &str = "imgbased.first";
pub const TRIAL: &str = "imgbased.trial";
pub const NONE: &str = "imgbased.none";

/// Renders a menu from entries, in the order in which they come. Their options stand as they are, as they
/// do where GRUB reads the entries itself. One that does has listed them already, and our grub.cfg says so;
/// then there is only the entry on trial that is about to be booted, for GRUB's own would wait for a key
/// where its kernel cannot be read.
///
/// Where the default is of another system, the menu begins with an entry that does no harm: GRUB takes the
/// first where that default is gone.
pub fn render(entries: &[Entry]) -> String {
    let first = entries.iter().find(|entry| !entry.is_trial());
    let mut menu = HEAD.to_owned() + &search(entries, first);
    menu += "if [ -z \"$imgbased_found\" ]; then\n\tset default='";
    menu += &format!("{NONE}'\n{}fi\n", no_entry());
    let harmless = first.map_or_else(no_entry, |first| menu_entry(first, &first.title, FIRST));
    menu += &format!(
        "if [ -z \"$imgbased_listed\" -a \"$imgbased_found\" = \"other\" ]; then\n{harmless}fi\n"
    );
    menu += "if [ -z \"$imgbased_listed\" ]; then\n";
    for entry in entries {
        menu += &menu_entry(entry, &entry.title, &entry.id);
    }
    menu += "fi\n";
    for entry in entries.iter().filter(|entry| entry.is_trial()) {
        menu += &format!(
            "if [ -n \"$imgbased_listed\" -a \"$default\" = '{}' ]; then\n\tset default='{TRIAL}'\n{}fi\n",
            entry.id,
            menu_entry(entry, &format!("{}, on trial", entry.title), TRIAL)
        );
    }
    menu
}

/// [`SEARCH`] with the ids and titles of these entries, by both of which GRUB finds them.
fn search(entries: &[Entry], first: Option<&Entry>) -> String {
    let names = |is_trial: bool| -> String {
        let wanted = entries.iter().filter(|entry| entry.is_trial() == is_trial);
        let names = wanted.flat_map(|entry| [&entry.id, &entry.title]);
        let names: String = names.map(|name| format!(" '{name}'")).collect();
        if names.is_empty() {
            " ''".to_owned()
        } else {
            names
        }
    };
    SEARCH
        .replace("@PREFIX@", PREFIX)
        .replace("@ENTRIES@", ENTRIES)
        .replace(
            "@GOOD@",
            &first.map_or_else(String::new, |first| format!(" '{}'", first.id)),
        )
        .replace("@ALL_GOOD@", &names(false))
        .replace("@ALL_TRIAL@", &names(true))
}

/// An entry that boots nothing, for when no layer has come up that could: GRUB waits.
fn no_entry() -> String {
    let title = "No layer has come up yet; choose one";
    format!("\nmenuentry '{title}' --unrestricted --id '{NONE}' {{\n\ttrue\n}}\n")
}

/// One entry; where it is on trial, the machine restarts if a file of it cannot be read, or the firmware
/// does not start the kernel.
fn menu_entry(entry: &Entry, title: &str, id: &str) -> String {
    let linux = format!("linux $imgbased_boot{} {}", entry.linux, entry.options);
    let mut initrd = "initrd".to_owned();
    for path in entry.initrds() {
        // Others may write paths without the slash.
        initrd += &format!(" $imgbased_boot/{}", path.trim_start_matches('/'));
    }
    let commands = if entry.is_trial() {
        format!("\tif {linux}; then\n\t\tif {initrd}; then\n\t\t\tboot\n\t\tfi\n\tfi\n\treboot\n")
    } else {
        format!("\t{linux}\n\t{initrd}\n")
    };
    format!(
        "\nmenuentry '{title}' --class gnu-linux{} --id '{id}' {{\n{commands}}}\n",
        arguments(&entry.extra.lines)
    )
}

/// The arguments of `menuentry` for the lines of an entry that GRUB alone reads. What would have to be
/// evaluated is left out: an entry without `--users` and `--unrestricted` is for superusers only.
fn arguments(lines: &[String]) -> String {
    let mut arguments = String::new();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || " _.,-".contains(c);
    for (key, value) in lines.iter().filter_map(|line| line.split_once(' ')) {
        match key {
            _ if !value.chars().all(is_plain) => {}
            "grub_users" => arguments += &format!(" --users '{value}'"),
            "grub_class" => arguments += &format!(" --class '{value}'"),
            "grub_arg" if value == "--unrestricted" => arguments += " --unrestricted",
            _ => {}
        }
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::entry::Extra;

    fn entry() -> Entry {
        Entry {
            id: "imgbased-Base-0.1".into(),
            title: "Base-0.1 (Debian, Linux 6.12)".into(),
            version: "6.12".into(),
            sort_key: "imgbased-layer".into(),
            linux: "/imgbased/vmlinuz-6.12-01".into(),
            initrd: "/imgbased/initrd-6.12-02".into(),
            options: "quiet imgbased.layer=Base-0.1".into(),
            extra: Extra::default(),
        }
    }

    #[test]
    fn a_menu_entry_boots_what_the_entry_says() {
        let expected = "\nmenuentry 'Base-0.1 (Debian, Linux 6.12)' --class gnu-linux --id 'imgbased-Base-0.1' {\n\
             \tlinux $imgbased_boot/imgbased/vmlinuz-6.12-01 quiet imgbased.layer=Base-0.1\n\
             \tinitrd $imgbased_boot/imgbased/initrd-6.12-02\n}\n";
        assert_eq!(menu_entry(&entry(), &entry().title, &entry().id), expected);
        assert!(render(&[entry()]).contains(expected));
    }

    #[test]
    fn all_initramfs_images_are_loaded_in_their_order() {
        let extra = Extra {
            before: vec!["ucode.img".into()],
            after: vec!["/debug.img".into()],
            lines: Vec::new(),
        };
        let menu = render(&[Entry { extra, ..entry() }]);
        let line = "\tinitrd $imgbased_boot/ucode.img $imgbased_boot/imgbased/initrd-6.12-02 \
                    $imgbased_boot/debug.img\n";
        assert!(menu.contains(line), "{menu}");
    }

    #[test]
    fn grub_restarts_where_it_cannot_read_an_entry_on_trial() {
        let trial = entry().on_trial();
        let commands = format!(
            "{{\n\
             \tif linux $imgbased_boot/imgbased/vmlinuz-6.12-01 {}; then\n\
             \t\tif initrd $imgbased_boot/imgbased/initrd-6.12-02; then\n\t\t\tboot\n\t\tfi\n\tfi\n\
             \treboot\n}}\n",
            trial.options
        );
        let menu = render(&[trial]);
        let listed = format!(
            "if [ -n \"$imgbased_listed\" -a \"$default\" = 'imgbased-Base-0.1' ]; then\n\
             \tset default='imgbased.trial'\n\
             \nmenuentry 'Base-0.1 (Debian, Linux 6.12), on trial' --class gnu-linux --id 'imgbased.trial' {commands}fi\n"
        );
        assert!(menu.ends_with(&listed), "{menu}");
        assert_eq!(menu.matches(&commands).count(), 2);
    }

    #[test]
    fn what_grub_alone_reads_is_in_the_menu_unless_it_had_to_be_evaluated() {
        for (lines, expected) in [
            (
                &["grub_users root,me", "grub_class fedora"][..],
                " --users 'root,me' --class 'fedora'",
            ),
            (&["grub_arg --unrestricted"], " --unrestricted"),
            (&["grub_users $grub_users", "grub_arg --hotkey x"], ""),
            (&["grub_class a;b", "machine-id x", "# grub_users x"], ""),
        ] {
            let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
            assert_eq!(arguments(&lines), expected);
        }
    }

    #[test]
    fn who_reads_the_entries_is_what_the_configuration_says() {
        for (config, wanted) in [
            ("", (false, true)),
            ("# blscfg\nfor file in *.cfg; do\n", (false, true)),
            ("insmod blscfg\nblscfg\n", (true, false)),
            ("if true; then blscfg;fi", (true, false)),
            (include_str!("../../../grub/grub.cfg"), (true, true)),
            (include_str!("../../../grub/09_imgbased"), (false, true)),
        ] {
            assert_eq!(reads(config), wanted, "{config}");
        }
    }
}
