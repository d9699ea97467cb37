// The way into EL3 and out of it.
//
// While a lower exception level runs, SP_EL3 holds the address of its frame, at the top of the
// CPU's stack; so does TPIDR_EL3, always. The MMU is off, exceptions stay masked in EL3, and no
// vector register is touched.

.section .text.entry, "ax"

// All CPUs, at reset: EL3, no stack, registers unknown. Finds the CPU's number, which is that
// of its redistributor. The CPU with affinity 0 boots; all others wait until it has set up the
// distributor, whose registers a reset clears, other than secure RAM.
.global monitor_entry
monitor_entry:
    adr x9, monitor_vectors
    msr vbar_el3, x9
    isb
    mrs x0, mpidr_el1
    ubfx x1, x0, #{AFF3}, #{AFF_BITS}
    bfi x0, x1, #{AFF3_PACKED}, #{AFF_BITS}
    // w0: the affinity, as redistributors have it. x2: the redistributor. x19: its number.
    ldr x2, ={REDISTRIBUTORS}
    mov x19, xzr
1:  ldr x3, [x2, #{TYPER}]
    lsr x4, x3, #{TYPER_AFFINITY}
    cmp w4, w0
    b.eq 3f
    tbnz x3, #{TYPER_LAST}, 2f
    ldr x4, ={REDISTRIBUTOR_SIZE}
    add x2, x2, x4
    add x19, x19, #1
    b 1b
2:  // No redistributor: a CPU that cannot be used.
    wfi
    b 2b
3:  // x20: the stacks. x21: where the frame is.
    adrp x20, {STACKS}
    add x20, x20, :lo12:{STACKS}
    ldr x3, ={STACK}
    madd x21, x19, x3, x20
    add x21, x21, x3
    sub x21, x21, #{FRAME}
    msr tpidr_el3, x21
    cbz w0, 5f
    ldr x2, ={DISTRIBUTOR}
4:  ldr w3, [x2]
    tbz w3, #{OPEN}, 4b
    dsb sy
    mov sp, x21
    mov x0, x19
    bl {wait}
5:  adrp x1, bss_start
    add x1, x1, :lo12:bss_start
    adrp x2, bss_end
    add x2, x2, :lo12:bss_end
6:  cmp x1, x2
    b.hs 7f
    stp xzr, xzr, [x1], #{PAIR}
    b 6b
7:  ldr x1, ={STACKS_SIZE}
    ldr x2, ={BOOT_STACK}
    add x1, x1, x2
    add x1, x1, x20
    mov sp, x1
    mov x0, x19
    bl {boot}
.ltorg

// An exception from EL3 itself, or of a kind that is not routed here: on a fresh stack, since
// the present one may be the reason.
.macro unexpected
    .balign 1 << {VECTOR_ALIGN}
    mrs x0, tpidr_el3
    mov sp, x0
    adr x0, .
    bl {unexpected}
.endm

// Saves the frame, calls the handler with its address, and goes back with what it left.
.macro handled handler
    .balign 1 << {VECTOR_ALIGN}
    stp x0, x1, [sp, #{X0}]
    adr x1, \handler
    b monitor_save
.endm

.balign 1 << {TABLE_ALIGN}
monitor_vectors:
    .rept 8
    unexpected
    .endr
    handled {call}
    unexpected
    handled {interrupt}
    .rept 5
    unexpected
    .endr

// x1: the handler, a function of the frame. x0 and x1 are saved.
monitor_save:
    stp x2, x3, [sp, #{X2}]
    stp x4, x5, [sp, #{X4}]
    stp x6, x7, [sp, #{X6}]
    stp x8, x9, [sp, #{X8}]
    stp x10, x11, [sp, #{X10}]
    stp x12, x13, [sp, #{X12}]
    stp x14, x15, [sp, #{X14}]
    stp x16, x17, [sp, #{X16}]
    stp x18, x19, [sp, #{X18}]
    stp x20, x21, [sp, #{X20}]
    stp x22, x23, [sp, #{X22}]
    stp x24, x25, [sp, #{X24}]
    stp x26, x27, [sp, #{X26}]
    stp x28, x29, [sp, #{X28}]
    str x30, [sp, #{X30}]
    mrs x2, elr_el3
    str x2, [sp, #{PC}]
    mrs x2, spsr_el3
    str x2, [sp, #{PSTATE}]
    mov x0, sp
    blr x1
    mov x0, sp

// x0: the frame, at the top of this CPU's stack.
monitor_leave:
    mov sp, x0
    ldr x2, [sp, #{PC}]
    msr elr_el3, x2
    ldr x2, [sp, #{PSTATE}]
    msr spsr_el3, x2
    ldp x0, x1, [sp, #{X0}]
    ldp x2, x3, [sp, #{X2}]
    ldp x4, x5, [sp, #{X4}]
    ldp x6, x7, [sp, #{X6}]
    ldp x8, x9, [sp, #{X8}]
    ldp x10, x11, [sp, #{X10}]
    ldp x12, x13, [sp, #{X12}]
    ldp x14, x15, [sp, #{X14}]
    ldp x16, x17, [sp, #{X16}]
    ldp x18, x19, [sp, #{X18}]
    ldp x20, x21, [sp, #{X20}]
    ldp x22, x23, [sp, #{X22}]
    ldp x24, x25, [sp, #{X24}]
    ldp x26, x27, [sp, #{X26}]
    ldp x28, x29, [sp, #{X28}]
    ldr x30, [sp, #{X30}]
    eret
    // No speculation past the exception return.
    dsb nsh
    isb
