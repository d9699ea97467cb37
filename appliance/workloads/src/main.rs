//! The appliance image: Epitaph's unikernel with its built-in workloads.
//!
//! What happens, in order, is [`kernel::start`]'s story: read what the loader left, get
//! ready to be captured, find and start the CPUs, protect memory, run the workloads, give a
//! verdict. Whatever goes wrong on the way ends in `kernel::crash`.
//!
//! Entry contract: `machine`'s boot code calls [`appliance_main`] in 64-bit mode with the
//! first 4 GiB mapped one to one, on the boot stack, interrupts masked.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod image {
    #![expect(unsafe_code, reason = "the symbol that the boot code calls needs a fixed name")]

    use epitaph_workload::Workload;
    use kernel::work::workload::blkverify::Blkverify;
    use kernel::work::workload::memstamp::Memstamp;
    use workloads::bank::Bank;
    use workloads::hashtree::Hashtree;
    use workloads::heap::Heap;
    use workloads::queens::Queens;
    use workloads::ring::Ring;
    use workloads::sieve::Sieve;

    static SIEVE: Sieve = Sieve::new();
    static QUEENS: Queens = Queens::new();
    static HASHTREE: Hashtree = Hashtree::new();
    static HEAP: Heap = Heap::new();
    static BANK: Bank = Bank::new();
    static RING: Ring = Ring::new();
    static WORKLOADS: &[&dyn Workload] =
        &[&SIEVE, &Memstamp, &QUEENS, &HASHTREE, &BANK, &RING, &HEAP, &Blkverify];

    #[unsafe(no_mangle)]
    extern "C" fn appliance_main(magic: u32, information: u32) -> ! {
        kernel::start(magic, information, WORKLOADS)
    }

    #[panic_handler]
    fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
        kernel::crash::on_panic(info)
    }
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this is the appliance's image; build it with `cargo xtask build`");
    std::process::exit(2);
}
