// Entry of the appliance's ELF, in 32-bit protected mode, paging off, interrupts off.
//
// Both loaders come here: GRUB by the Multiboot2 header (EAX = magic, EBX = information
// structure; Multiboot2 specification 1.6 section 3.3) and PVH by the Xen note (EBX =
// hvm_start_info; Xen's x86 HVM start of day). ESP and the segment limits beyond 4 GiB
// flat are all that may be relied on, so nothing else is.
//
// Leaves: long mode, the first 4 GiB mapped one to one, RSP on the boot stack, and calls
// appliance_main(EAX, EBX), which never returns.

.section .multiboot, "a", @progbits
.balign 8
multiboot_header:
    .long 0xe85250d6                        // magic
    .long 0                                 // i386 protected mode
    .long multiboot_header_end - multiboot_header
    .long -(0xe85250d6 + (multiboot_header_end - multiboot_header))
    .balign 8
    .short 6, 0                             // modules start on page boundaries
    .long 8
    .balign 8
    .short 5, 1                             // a framebuffer, where there is one (3.1.10)
    .long 20
    .long 1024, 768, 32                     // preferred: pixels, lines, bits of a pixel
    .balign 8
    .short 0, 0                             // end of tags
    .long 8
multiboot_header_end:

// Not a SHT_NOTE section: those survive section garbage collection, and the capture image
// links this crate as well. The linker script puts it into a PT_NOTE, which is what counts.
.section .pvh_note, "a", @progbits
.balign 4
    .long 4, 8, 18                          // name bytes, value bytes, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad boot_entry

.section .text.boot_entry, "ax", @progbits
.code32
.global boot_entry
.type boot_entry, @function
boot_entry:
    cli
    cld
    lea esp, [{stacks} + {stack_top}]
    mov esi, ebx                            // kept across CPUID
    mov edi, eax

    mov eax, 0x80000000                     // is there a long mode at all?
    cpuid
    cmp eax, 0x80000001
    jb boot_no_long_mode
    mov eax, 0x80000001
    cpuid
    bt edx, 29
    jnc boot_no_long_mode

    // PML4[0] -> PDPT, PDPT[0..4] -> 4 page directories of 2 MiB pages.
    lea eax, [boot_tables + 0x1000]
    or eax, 3
    mov [boot_tables], eax
    xor ecx, ecx
1:  mov eax, ecx
    shl eax, 12
    lea eax, [eax + boot_tables + 0x2000]
    or eax, 3
    mov [boot_tables + 0x1000 + ecx * 8], eax
    inc ecx
    cmp ecx, 4
    jb 1b
    xor ecx, ecx
2:  mov eax, ecx
    shl eax, 21
    or eax, 0x83                            // present, writable, large
    mov [boot_tables + 0x2000 + ecx * 8], eax
    inc ecx
    cmp ecx, 2048
    jb 2b

    // Paging is off, so CR4.LA57 may be changed (Intel SDM vol. 3, 4.1.1): firmware that
    // prefers five levels leaves it set, and these tables have four.
    mov eax, cr4
    or eax, {cr4_set}
    and eax, {cr4_keep}
    mov cr4, eax
    lea eax, [boot_tables]
    enable_long_mode
    lgdt [boot_gdt_pointer]
    // A far return, since the assembler has no far jump to a symbol in this mode.
    push 0x08
    lea eax, [boot_entry64]
    push eax
    retf

boot_no_long_mode:
    mov esi, offset boot_no_long_mode_text
3:  lodsb
    test al, al
    jz 4f
    mov edx, 0x3f8
    out dx, al
    jmp 3b
4:  hlt
    jmp 4b
.size boot_entry, . - boot_entry

.code64
.type boot_entry64, @function
boot_entry64:
    .cfi_startproc
    .cfi_undefined rip
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    lea rsp, [rip + {stacks} + {stack_top}]
    xor ebp, ebp
    mov eax, edi                            // first argument: EAX at entry
    mov esi, esi                            // second argument: EBX at entry
    mov edi, eax
    call appliance_main
    ud2
    .cfi_endproc
.size boot_entry64, . - boot_entry64

.section .rodata.boot, "a", @progbits
boot_no_long_mode_text:
    .asciz "epitaph: this processor has no 64-bit mode, nothing can run here\r\n"
.balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff                // 64-bit code
    .quad 0x00cf93000000ffff                // data
boot_gdt_pointer:
    .short . - boot_gdt - 1
    .long boot_gdt

.section .bss.boot_tables, "aw", @nobits
.balign 4096
.global boot_tables
boot_tables:
    .skip 0x6000
.purgem enable_long_mode
