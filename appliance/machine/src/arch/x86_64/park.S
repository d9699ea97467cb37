// Where a stopped CPU ends.
//
// park_enter is the last code of the appliance it runs: RDI = top of its park stack,
// RSI = where to acknowledge, EDX = what to write there, RCX = root of the park page
// tables, R8 = the park area. Its frame and all it held stay as they are.
//
// From park_code to park_code_end is copied to the start of the park area. It uses no
// other memory, so nothing that happens to the crashed system's memory disturbs it. The
// acknowledgement is its first act there and the last before the halt: whoever sees it
// knows that this CPU has left all other memory for good.
//
// Every vector of the park IDT leads to park_trap, which drops the frame and halts again.
// It never executes IRET after an NMI, so a CPU stopped by NMI takes no further one; MCIP
// is cleared so that a second machine check is not fatal.

.section .text.park_enter, "ax", @progbits
.code64
.global park_enter
.type park_enter, @function
park_enter:
    cli
    mov cr3, rcx
    mov rsp, rdi
    lgdt [r8 + {gdt_pointer}]
    lidt [r8 + {idt_pointer}]
    push {code_selector}
    push r8
    retfq
.size park_enter, . - park_enter

.section .rodata.park_code, "a", @progbits
.balign 16
.global park_code
park_code:
    mfence
    mov [rsi], edx
1:  hlt
    jmp 1b

.balign 16
.global park_trap
park_trap:
    push rax
    push rcx
    push rdx
    mov ecx, 0x17a                          // IA32_MCG_STATUS
    xor eax, eax
    xor edx, edx
    cmp byte ptr [rip + park_has_mca], 0
    je 2f
    wrmsr
2:  pop rdx
    pop rcx
    pop rax
    mov rsp, rdi
3:  hlt
    jmp 3b
.global park_has_mca
park_has_mca:
    .byte 0
.global park_code_end
park_code_end:
