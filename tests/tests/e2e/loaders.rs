//! Two loaders, one machine: what the appliance made of it is the same.

use e2e::harness::Boot;
use handoff::BootFacts;

use crate::story::{Crashed, Story};

fn facts(crashed: &Crashed) -> &BootFacts {
    crashed.dump.facts.as_ref().expect("boot facts")
}

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn pvh_and_grub_describe_the_same_machine() {
    let mut options = Story::PANIC.options();
    let out = options.out.clone();
    options.boot = Boot::Bios;
    options.out = out.join("bios");
    let grub = Crashed::from(&options);
    // The firmware reserves memory for each drive it finds: the machine is the same only
    // with the CD in it.
    let medium = grub.outcome.out.join("boot.iso");
    options.qemu_args = vec!["-cdrom".into(), medium.to_str().expect("UTF-8").into()];
    options.boot = Boot::Pvh;
    options.out = out.join("pvh");
    let pvh = Crashed::from(&options);

    assert_eq!(facts(&pvh).command_line(), options.kernel_command_line());
    assert_eq!(facts(&pvh).command_line(), facts(&grub).command_line());
    assert_eq!(facts(&pvh).memory(), facts(&grub).memory());
    assert_eq!(facts(&pvh).build_id(), facts(&grub).build_id());
    assert_eq!(facts(&pvh).region, facts(&grub).region);
    let hardware_ids = |crashed: &Crashed| -> Vec<(u32, u64)> {
        crashed.dump.cpus.iter().map(|cpu| (cpu.index, cpu.hardware_id)).collect()
    };
    assert_eq!(hardware_ids(&pvh), hardware_ids(&grub));
}
