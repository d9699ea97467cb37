// Where a stopped CPU ends, and where it may be called back from.
//
// park_enter is the last code of the appliance it runs: RDI = a Call (see park.rs), in
// memory that is still mapped. Its frame and all it held stay as they are.
//
// From park_code to park_code_end is copied to the start of the park area. It uses no
// other memory but the mailbox, so nothing that happens to the crashed system's memory
// disturbs it. The acknowledgement is its first act there and the last before the halt:
// whoever sees it knows that this CPU has left all other memory for good.
//
// Registers while parked: R12 = top of the park stack, R13 = this CPU's mailbox, R14 = root
// of the park page tables. A function keeps all three for its caller, so they are still
// there when a call is done. Until the acknowledgement: R11 = its address, R10 = its value. A
// CPU that parks for good then sets R11 to 0.

.section .text.park_enter, "ax", @progbits
.code64
.global park_enter
.type park_enter, @function
park_enter:
    cli
    mov r11, [rdi + {call_acknowledge}]
    mov r10d, [rdi + {call_value}]
    mov r8, [rdi + {call_area}]
    mov r9, [rdi + {call_idt_pointer}]
    mov rcx, [rdi + {call_target}]
    mov r12, [rdi + {call_stack}]
    mov r13, [rdi + {call_mailbox}]
    mov r14, [rdi + {call_root}]
    mov cr3, r14
    mov rsp, r12
    lgdt [r8 + {gdt_pointer}]
    lidt [r9]
    push {code_selector}
    push rcx
    retfq
.size park_enter, . - park_enter

.section .rodata.park_code, "a", @progbits
.balign 16
.global park_code
park_code:

// Parked for good, by NMI or by itself: interrupts stay masked, nothing calls it back.
.global park_for_good
park_for_good:
    call park_acknowledge
1:  hlt
    jmp 1b

// The acknowledgement of a CPU that parks for good, once: an NMI or a machine check that comes
// before it makes it in park_trap, from which it does not come back here.
park_acknowledge:
    mov dword ptr [r13 + {box_state}], {for_good}
    mfence
    mov [r11], r10d
    xor r11d, r11d
    ret

// Parked after INIT: it has been through park_landing below.
park_after_init:
    mov dword ptr [r13 + {box_state}], {after_init}
    mfence
2:  hlt
    jmp 2b

// Stopped by the interrupt: waits in HLT, interrupts unmasked, for a call in its mailbox.
// The task priority lets nothing through but the two vectors above all others.
.balign 16
.global park_wait
park_wait:
    mov dword ptr [r13 + {box_state}], {waiting}
    mfence
    mov [r11], r10d
3:  cli
    mov ebx, [r13 + {box_call}]
    cmp ebx, [r13 + {box_done}]
    jne 4f
    sti                                     // takes effect behind the HLT: no gap
    hlt
    jmp 3b
4:  mov [r13 + {box_taken}], ebx
    mov rdi, [r13 + {box_argument}]
    mov rsi, [r13 + {box_stack}]
    mov rax, [r13 + {box_entry}]
    mov rcx, [r13 + {box_root}]
    // In this order: an NMI or a machine check may come in between, and the park stack is
    // read only in the tables of whoever calls.
    mov rsp, rsi
    mov cr3, rcx
    cld
    xor ebp, ebp
    call rax
    cli
    mov cr3, r14
    mov rsp, r12
    mfence                                  // what the call did, before that it is done
    mov [r13 + {box_done}], ebx
    jmp 3b

// Every vector of a CPU parked for good leads here. It drops the frame and halts again: it
// never executes IRET after an NMI, so a CPU stopped by NMI takes no further one. MCIP is
// cleared, so that a second machine check does not shut the machine down.
.balign 16
.global park_trap
park_trap:
    push rax
    push rcx
    push rdx
    cmp byte ptr [rip + park_has_mca], 0
    je 5f
    mov ecx, {mcg_status}
    xor eax, eax
    xor edx, edx
    wrmsr
5:  mov rsp, r12
    test r11, r11
    jz 6f
    call park_acknowledge
6:  hlt
    jmp 6b

// The same for a CPU that waits or works on a call. It was not stopped by NMI, so it may
// return from one.
.balign 16
.global park_wait_nmi
park_wait_nmi:
    iretq

// A machine check: goes on when the processor says that it can.
.balign 16
.global park_wait_mce
park_wait_mce:
    push rax
    push rcx
    push rdx
    cmp byte ptr [rip + park_has_mca], 0
    je park_lost
    mov ecx, {mcg_status}
    rdmsr
    push rax
    xor eax, eax
    xor edx, edx
    wrmsr
    pop rax
    test eax, 1                             // the interrupted program can go on
    jz park_lost
    pop rdx
    pop rcx
    pop rax
    iretq

// A fault while working on a call: stays where it is, and the call is never done.
.balign 16
.global park_lost
park_lost:
    cli
    hlt
    jmp park_lost

// Any interrupt: ends a HLT, and whoever waits looks into the mailbox.
.balign 16
.global park_wait_interrupt
park_wait_interrupt:
    push rax
    push rcx
    push rdx
    cmp byte ptr [rip + park_has_x2apic], 0
    je 7f
    mov ecx, {msr_eoi}
    xor eax, eax
    xor edx, edx
    wrmsr
    jmp 8f
7:  mov eax, {xapic_eoi}
    mov dword ptr [rax], 0
8:  pop rdx
    pop rcx
    pop rax
    iretq

// Where park_start arrives: 64-bit mode, the park page tables, nothing else known. Looks for
// its mailbox by its APIC ID; one that has none takes the last.
.balign 16
.global park_landing
park_landing:
    mov eax, {data_selector}
    mov ds, eax
    mov es, eax
    mov ss, eax
    own_apic_id
    lea r8, [rip + park_code]
    lea r13, [r8 + {mailboxes}]
    lea r12, [r8 + {stacks} + {stack_bytes}]
    mov ecx, {cpus} - 1
10: cmp [r13 + {box_apic_id}], edi
    je 11f
    add r13, {box_bytes}
    add r12, {stack_bytes}
    dec ecx
    jnz 10b
11: mov rsp, r12
    lgdt [r8 + {gdt_pointer}]
    lidt [r8 + {idt_pointer}]
    xor r11d, r11d                          // nothing to acknowledge
    jmp park_after_init
.global park_has_mca
park_has_mca:
    .byte 0
.global park_has_x2apic
park_has_x2apic:
    .byte 0
.global park_code_end
park_code_end:

// Where a CPU that was stopped by INIT begins at its start-up IPI: from real mode into the
// park area (real_mode.S), whose page tables and landing are entered when it is copied. INIT
// has cleared CR4.MCE, and a machine check that reaches every CPU resets the machine when one
// of them has it clear: this is what sets it again.
.section .rodata.park_start, "a", @progbits
start_in_real_mode park_start, 0, 0
.purgem start_in_real_mode
.purgem enable_long_mode
.purgem own_apic_id
