//! The boot matrix: every way in, with one CPU and with four, reaches the workloads,
//! crashes and is captured.

use e2e::harness::Boot;

use crate::story::Story;

/// One CPU, then four. The words of the dump are checked as for every other crash.
fn boots(boot: Boot) {
    for cpus in [1, 4] {
        let story = Story { boot, cpus, on: u32::from(cpus > 1), ..Story::PANIC };
        let mut options = story.options();
        options.out = options.out.join(format!("{cpus}"));
        let crashed = crate::story::Crashed::from(&options);
        story.check(&crashed);
        let facts = crashed.dump.facts.as_ref().expect("boot facts");
        assert_eq!(facts.cpu_count, cpus);
        assert_ne!(facts.rsdp, 0, "every loader here names the RSDP, and it led to the CPUs");
        let by_pvh = matches!(boot, Boot::Pvh | Boot::Microvm);
        let loader = if by_pvh { "PVH" } else { "Multiboot2" };
        assert!(crashed.outcome.console.has(&format!("epitaph: booted by {loader}")));
    }
}

/// One test per way in.
macro_rules! matrix {
    ($($name:ident = $boot:ident;)*) => {
        $(
            #[test]
            #[ignore = "boots QEMU: run cargo xtask test"]
            fn $name() {
                boots(Boot::$boot);
            }
        )*

        /// A way in that is added needs a row here.
        #[test]
        fn the_matrix_is_whole() {
            assert_eq!(Boot::ALL, [$(Boot::$boot),*]);
        }
    };
}

matrix! {
    pvh = Pvh;
    microvm = Microvm;
    bios = Bios;
    uefi = Uefi;
    disk_bios = DiskBios;
    disk_uefi = DiskUefi;
    usb = Usb;
    usb_uefi = UsbUefi;
}
