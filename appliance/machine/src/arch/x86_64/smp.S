// Where the start-up IPI of a CPU begins: from real mode to the kernel's text (real_mode.S),
// on the boot's page tables; the kernel's own are loaded in 64-bit mode.

.section .rodata.ap_start, "a", @progbits
start_in_real_mode ap_start, boot_tables, ap_entry64
.purgem start_in_real_mode
.purgem enable_long_mode

.section .text.ap_entry64, "ax", @progbits
.code64
.type ap_entry64, @function
// Finds its own entry in the table by its APIC ID, so that no two CPUs race for a stack.
ap_entry64:
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
    own_apic_id
    lea rbx, [rip + {table}]
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
.purgem own_apic_id
