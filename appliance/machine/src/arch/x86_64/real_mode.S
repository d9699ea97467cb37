// The way from a start-up IPI to 64-bit mode, for everybody who goes it.
//
// Real mode, CS:IP = page:0, nothing else known. What stands between NAME and NAME_end is
// copied to a page below 640 KiB. It goes straight from real mode to long mode (PE and PG in
// one write of CR0), on the page tables at ROOT, and leaves for TARGET, with the page's own
// descriptor table loaded. Position: all references are offsets from NAME, DS is the page;
// whoever copies it adds the page's address at NAME_gdt_base. Changes EAX, EBX, ECX, EDX, DS.

.macro start_in_real_mode name, root, target
.code16
.balign 16
.global \name
\name:
    cli
    cld
    mov ax, cs
    mov ds, ax
    // The Intel syntax takes no difference of labels as an address; three instructions
    // are therefore spelled out.
    .byte 0x0f, 0x01, 0x16                  // lgdt [disp16]
    .short \name\()_gdt_pointer - \name
    .byte 0x66, 0xa1                        // mov eax, [disp16]
    .short \name\()_root - \name
    enable_long_mode
    .byte 0x66, 0xff, 0x2e                  // jmp far dword ptr [disp16]
    .short \name\()_far_pointer - \name
.balign 8
\name\()_gdt:
    .quad 0
    .quad 0x00af9b000000ffff                // 64-bit code
    .quad 0x00cf93000000ffff                // data
\name\()_gdt_pointer:
    .short \name\()_gdt_pointer - \name\()_gdt - 1
.global \name\()_gdt_base
\name\()_gdt_base:
    .long \name\()_gdt - \name
.balign 8
.global \name\()_root
\name\()_root:
    .long \root
.global \name\()_far_pointer
\name\()_far_pointer:
    .long \target
    .short 0x08
.global \name\()_end
\name\()_end:
.endm
