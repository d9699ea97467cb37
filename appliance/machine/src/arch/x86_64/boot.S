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

.macro cpuid_keeping_ebx
    push ebx
    cpuid
    pop ebx
.endm

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

    // All that the appliance cannot do without, before any of it is used. What it can do
    // without (NX, MCE, PAT, PGE, 1 GiB pages, RDTSCP, x2APIC) is asked for where it is used.
    mov ebx, {long_mode_name}
    mov eax, 0x80000000                     // is there a long mode at all?
    cpuid_keeping_ebx
    cmp eax, 0x80000001
    jb boot_lacks
    mov eax, 0x80000001
    cpuid_keeping_ebx
    bt edx, 29
    jnc boot_lacks
    mov eax, 1
    cpuid
    not edx
    and edx, {required}
    bsf ebx, edx
    jnz boot_lacks

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

    lea eax, [boot_tables]
    enable_long_mode
    lgdt [boot_gdt_pointer]
    // A far return, since the assembler has no far jump to a symbol in this mode.
    push 0x08
    lea eax, [boot_entry64]
    push eax
    retf

// The processor lacks the feature with the number in EBX: says so on the first serial port.
boot_lacks:
    mov esi, offset boot_lacks_text
    call boot_print
    mov esi, ebx
    shl esi, 4
    add esi, offset boot_feature_names
    call boot_print
    mov esi, offset boot_lacks_end
    call boot_print
3:  hlt
    jmp 3b

// Prints the text at ESI; waits for the port for a bounded time. Changes EAX, ECX, EDX, ESI.
boot_print:
    lodsb
    test al, al
    jz 6f
    mov ah, al
    mov ecx, 0x10000
    mov edx, 0x3fd                          // line status: bit 5, ready for a byte
4:  in al, dx
    test al, 1 << 5
    jnz 5f
    dec ecx
    jnz 4b
5:  mov al, ah
    mov edx, 0x3f8
    out dx, al
    jmp boot_print
6:  ret
.size boot_entry, . - boot_entry
.purgem cpuid_keeping_ebx

.code64
.type boot_entry64, @function
boot_entry64:
    .cfi_startproc
    // Nothing of a caller: drgn ends a stack only where no register at all is known, and
    // otherwise goes on by the frame pointer, which is 0 and memory here.
    .cfi_undefined rip
    .cfi_undefined rsp
    .cfi_undefined rbp
    .cfi_undefined rbx
    .cfi_undefined r12
    .cfi_undefined r13
    .cfi_undefined r14
    .cfi_undefined r15
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
boot_lacks_text:
    .asciz "epitaph: this processor has no "
boot_lacks_end:
    .asciz ", nothing can run here\r\n"
// By bit of EDX of CPUID 1, 16 bytes each, and behind them the long mode.
boot_feature_names:
    .irp name, "", "", "", "", "TSC", "MSRs", "PAE", "", "", "local APIC", "", "", "", "", "", "CMOV", "", "", "", "", "", "", "", "", "", "", "SSE2", "64-bit mode"
7:  .asciz "\name"
    .skip 16 - (. - 7b)
    .endr
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
