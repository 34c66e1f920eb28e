//! The menu for a GRUB that cannot read entries itself (2.12 and before).

use super::entry::Entry;

/// The name of the menu, beside grub.cfg.
pub const MENU: &str = "imgbased.cfg";

/// Renders a menu from entries, in the order in which they come.
pub fn render_menu(entries: &[Entry]) -> String {
    let mut menu = String::from(
        "# Written by imgbased-helper from the entries in loader/entries; changes here are lost.\n",
    );
    for entry in entries {
        // The paths are relative to the filesystem that GRUB itself was read from, whatever root
        // is set to. The options stand as they are, as they do where GRUB reads the entry itself.
        menu += &format!(
            "\nmenuentry '{}' --class gnu-linux --id '{}' {{\n\
             \tregexp --set=1:root '^\\(([^)]+)\\)' \"$prefix\"\n\
             \tlinux {} {}\n\
             \tinitrd {}\n\
             }}\n",
            entry.title, entry.id, entry.linux, entry.options, entry.initrd
        );
    }
    menu
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_menu_entry_boots_what_the_entry_says() {
        let entry = Entry {
            id: "imgbased-Base-0.1".into(),
            title: "Base-0.1 (Debian, Linux 6.12)".into(),
            version: "6.12".into(),
            sort_key: "imgbased-layer".into(),
            linux: "/imgbased/vmlinuz-6.12-01".into(),
            initrd: "/imgbased/initrd-6.12-02".into(),
            options: "quiet imgbased.layer=Base-0.1".into(),
        };
        let menu = render_menu(&[entry]);
        let (comment, body) = menu.split_once("\n\n").unwrap();
        assert!(comment.starts_with("# "));
        assert_eq!(
            body,
            "menuentry 'Base-0.1 (Debian, Linux 6.12)' --class gnu-linux --id 'imgbased-Base-0.1' {\n\
             \tregexp --set=1:root '^\\(([^)]+)\\)' \"$prefix\"\n\
             \tlinux /imgbased/vmlinuz-6.12-01 quiet imgbased.layer=Base-0.1\n\
             \tinitrd /imgbased/initrd-6.12-02\n}\n"
        );
    }
}
