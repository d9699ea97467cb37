// Where a start-up IPI begins: real mode, CS:IP = page:0, nothing else known.
//
// The block from ap_start to ap_start_end is copied to a page below 640 KiB. It goes
// straight from real mode to long mode (PE and PG in one write of CR0) and leaves for
// ap_entry64 in the kernel's text. Position: all references are offsets from ap_start, DS
// is the page.

.section .rodata.ap_start, "a", @progbits
.code16
.balign 16
.global ap_start
ap_start:
    cli
    cld
    mov ax, cs
    mov ds, ax
    // The Intel syntax takes no difference of labels as an address; three instructions
    // are therefore spelled out.
    .byte 0x0f, 0x01, 0x16                  // lgdt [disp16]
    .short ap_gdt_pointer - ap_start
    mov eax, {cr4_set}
    mov cr4, eax
    .byte 0x66, 0xa1                        // mov eax, [disp16]
    .short ap_root - ap_start
    mov cr3, eax
    mov ecx, 0xc0000080                     // EFER
    rdmsr
    or eax, {efer_set}
    wrmsr
    mov eax, cr0
    or eax, {cr0_set}
    and eax, {cr0_keep}
    mov cr0, eax
    .byte 0x66, 0xff, 0x2e                  // jmp far dword ptr [disp16]
    .short ap_far_pointer - ap_start
.balign 8
ap_gdt:
    .quad 0
    .quad 0x00af9b000000ffff                // 64-bit code
    .quad 0x00cf93000000ffff                // data
ap_gdt_pointer:
    .short ap_gdt_pointer - ap_gdt - 1
.global ap_gdt_base
ap_gdt_base:
    .long ap_gdt - ap_start                 // the page's address is added
.balign 8
ap_root:
    .long boot_tables                       // the kernel's own are loaded in 64-bit mode
ap_far_pointer:
    .long ap_entry64
    .short 0x08
.global ap_start_end
ap_start_end:

.section .text.ap_entry64, "ax", @progbits
.code64
.type ap_entry64, @function
// Finds its own entry in the table by its APIC ID, so that no two CPUs race for a stack.
ap_entry64:
    .cfi_startproc
    .cfi_undefined rip
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    cpuid                                   // leaf 0: highest basic leaf
    mov esi, eax
    mov eax, 1
    cpuid
    shr ebx, 24
    mov edi, ebx                            // initial APIC ID, 8 bits
    cmp esi, 0x0b
    jb 1f
    mov eax, 0x0b
    xor ecx, ecx
    cpuid
    mov edi, edx                            // x2APIC ID
1:  lea rbx, [rip + {table}]
    mov ecx, {table_entries}
2:  cmp dword ptr [rbx + {entry_apic_id}], edi
    jne 3f
    mov rsp, [rbx + {entry_stack_top}]      // not touched before the root is loaded
    test rsp, rsp
    jnz 4f
3:  add rbx, {entry_bytes}
    dec ecx
    jnz 2b
5:  cli                                     // not one of ours: wait here
    hlt
    jmp 5b
4:  mov edi, [rbx + {entry_index}]
    mov rax, [rip + {root}]
    mov cr3, rax
    xor ebp, ebp
    call {main}
    ud2
    .cfi_endproc
.size ap_entry64, . - ap_entry64
