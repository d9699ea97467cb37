// One stub per vector, and the way from there into machine_trap(&mut TrapFrame).
//
// A stub leaves, above the five words the processor pushed: the error code (zero where
// the processor pushes none) and the vector. trap_common adds the general registers, so
// that RSP points at a TrapFrame. The processor aligned the stack to 16 before pushing 5
// words; with 2 + 15 more it is aligned again, as the call wants it.

.section .text.trap_stubs, "ax", @progbits
.code64
.balign 16
.global trap_stubs
.type trap_stubs, @function
trap_stubs:
.set vector, 0
.rept 256
    .balign 16
    .if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30
    .else
    push 0
    .endif
    push vector
    jmp trap_common
    .set vector, vector + 1
.endr
.size trap_stubs, . - trap_stubs

.balign 16
.type trap_common, @function
trap_common:
    .cfi_startproc
    .cfi_signal_frame
    .cfi_def_cfa rsp, {above_gprs}
    .cfi_offset rip, -40
    .cfi_offset rsp, -16
    push rdi
    push rsi
    push rdx
    push rcx
    push rax
    push r8
    push r9
    push r10
    push r11
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    .cfi_def_cfa rsp, {frame_bytes}
    .cfi_offset r15, {r15} - {frame_bytes}
    .cfi_offset r14, {r14} - {frame_bytes}
    .cfi_offset r13, {r13} - {frame_bytes}
    .cfi_offset r12, {r12} - {frame_bytes}
    .cfi_offset rbp, {rbp} - {frame_bytes}
    .cfi_offset rbx, {rbx} - {frame_bytes}
    .cfi_offset r11, {r11} - {frame_bytes}
    .cfi_offset r10, {r10} - {frame_bytes}
    .cfi_offset r9, {r9} - {frame_bytes}
    .cfi_offset r8, {r8} - {frame_bytes}
    .cfi_offset rax, {rax} - {frame_bytes}
    .cfi_offset rcx, {rcx} - {frame_bytes}
    .cfi_offset rdx, {rdx} - {frame_bytes}
    .cfi_offset rsi, {rsi} - {frame_bytes}
    .cfi_offset rdi, {rdi} - {frame_bytes}
    cld
    mov rdi, rsp
    call {dispatch}
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    pop r11
    pop r10
    pop r9
    pop r8
    pop rax
    pop rcx
    pop rdx
    pop rsi
    pop rdi
    add rsp, 16
    iretq
    .cfi_endproc
.size trap_common, . - trap_common
