// Entry, vectors, the event handler and the wedge.

.arch armv8-a+fp+simd

.section .text.header, "ax"
// Header of a Linux arm64 Image. No number of its own: size and magic are the linker's and the
// library's.
.global client_header
client_header:
    b client_start
    .long 0
    .quad 0
    .quad image_size
    .quad {FLAGS}
    .quad 0, 0, 0
    .long {MAGIC}
    .long 0

.text
.macro set_up
    ldr x9, ={CPACR}
    msr cpacr_el1, x9
    adr x9, client_vectors
    msr vbar_el1, x9
    isb
    mrs x9, mpidr_el1
    and x9, x9, #{CPU_MASK}
    add x9, x9, #1
    ldr x10, ={STACK}
    adrp x11, {STACKS}
    add x11, x11, :lo12:{STACKS}
    madd x9, x9, x10, x11
    mov sp, x9
.endm

// The boot CPU.
client_start:
    adrp x1, bss_start
    add x1, x1, :lo12:bss_start
    adrp x2, bss_end
    add x2, x2, :lo12:bss_end
1:  cmp x1, x2
    b.hs 2f
    stp xzr, xzr, [x1], #{PAIR}
    b 1b
2:  set_up
    bl {story}

// Every other CPU, with the number of its job in x0.
.global client_secondary
client_secondary:
    set_up
    bl {job}

.macro unexpected
    .balign 1 << {VECTOR_ALIGN}
    adr x0, .
    b {unexpected}
.endm

.balign 1 << {TABLE_ALIGN}
client_vectors:
    .rept 5
    unexpected
    .endr
    .balign 1 << {VECTOR_ALIGN}
    b client_irq
    .rept 10
    unexpected
    .endr

// An interrupt: everything that a function may change, then the function.
client_irq:
    sub sp, sp, #{IRQ_FRAME}
    stp x0, x1, [sp, #{I0}]
    stp x2, x3, [sp, #{I2}]
    stp x4, x5, [sp, #{I4}]
    stp x6, x7, [sp, #{I6}]
    stp x8, x9, [sp, #{I8}]
    stp x10, x11, [sp, #{I10}]
    stp x12, x13, [sp, #{I12}]
    stp x14, x15, [sp, #{I14}]
    stp x16, x17, [sp, #{I16}]
    stp x18, x30, [sp, #{I18}]
    bl {irq}
    ldp x0, x1, [sp, #{I0}]
    ldp x2, x3, [sp, #{I2}]
    ldp x4, x5, [sp, #{I4}]
    ldp x6, x7, [sp, #{I6}]
    ldp x8, x9, [sp, #{I8}]
    ldp x10, x11, [sp, #{I10}]
    ldp x12, x13, [sp, #{I12}]
    ldp x14, x15, [sp, #{I14}]
    ldp x16, x17, [sp, #{I16}]
    ldp x18, x30, [sp, #{I18}]
    add sp, sp, #{IRQ_FRAME}
    eret

// x0: where 32 vector registers go, two at a time. Changes x0.
.macro vectors operation
    \operation q0, q1, [x0], #{Q}
    \operation q2, q3, [x0], #{Q}
    \operation q4, q5, [x0], #{Q}
    \operation q6, q7, [x0], #{Q}
    \operation q8, q9, [x0], #{Q}
    \operation q10, q11, [x0], #{Q}
    \operation q12, q13, [x0], #{Q}
    \operation q14, q15, [x0], #{Q}
    \operation q16, q17, [x0], #{Q}
    \operation q18, q19, [x0], #{Q}
    \operation q20, q21, [x0], #{Q}
    \operation q22, q23, [x0], #{Q}
    \operation q24, q25, [x0], #{Q}
    \operation q26, q27, [x0], #{Q}
    \operation q28, q29, [x0], #{Q}
    \operation q30, q31, [x0], #{Q}
.endm

// The event handler. x0: event, x1: this CPU's block, x2 and x3: what was interrupted. The
// stack pointer is not trusted. All other registers are those of the interrupted code.
.global client_handler
client_handler:
    stp x0, x1, [x1, #{X0}]
    stp x2, x3, [x1, #{X2}]
    stp x4, x5, [x1, #{X4}]
    stp x6, x7, [x1, #{X6}]
    stp x8, x9, [x1, #{X8}]
    stp x10, x11, [x1, #{X10}]
    stp x12, x13, [x1, #{X12}]
    stp x14, x15, [x1, #{X14}]
    stp x16, x17, [x1, #{X16}]
    stp x18, x19, [x1, #{X18}]
    stp x20, x21, [x1, #{X20}]
    stp x22, x23, [x1, #{X22}]
    stp x24, x25, [x1, #{X24}]
    stp x26, x27, [x1, #{X26}]
    stp x28, x29, [x1, #{X28}]
    str x30, [x1, #{X30}]
    mov x9, sp
    str x9, [x1, #{SP}]
    add x0, x1, #{V}
    vectors stp
    mrs x9, fpsr
    mrs x10, fpcr
    add x0, x1, #{STATUS}
    stp x9, x10, [x0]
    ldr x9, ={BLOCK}
    add x9, x1, x9
    mov sp, x9
    mov x19, x1
    mov x0, x1
    bl {handle}
    // x0: the action. What the interrupted code keeps goes back, everything else is junk.
    mov x1, x19
    cmp x0, #{PARK}
    b.ne 2f
1:  wfi
    b 1b
2:  cmp x0, #{COMPLETE}
    ldr w2, ={EVENT_COMPLETE}
    ldr w3, ={EVENT_COMPLETE_AND_RESUME}
    csel x0, x2, x3, eq
    ldr x9, [x1, #{SP}]
    mov sp, x9
    ldp x18, x19, [x1, #{X18}]
    ldp x20, x21, [x1, #{X20}]
    ldp x22, x23, [x1, #{X22}]
    ldp x24, x25, [x1, #{X24}]
    ldp x26, x27, [x1, #{X26}]
    ldp x28, x29, [x1, #{X28}]
    ldr x30, [x1, #{X30}]
    adr x1, client_resumed
    mov x2, #{JUNK}
    mov x3, x2
    mov x4, x2
    mov x5, x2
    mov x6, x2
    mov x7, x2
    mov x8, x2
    mov x9, x2
    mov x10, x2
    mov x11, x2
    mov x12, x2
    mov x13, x2
    mov x14, x2
    mov x15, x2
    mov x16, x2
    mov x17, x2
    smc #0
    unexpected

// Where COMPLETE_AND_RESUME goes: exceptions are masked, the stack is the interrupted one.
client_resumed:
    bl {resumed}

// x0: where the stack pointer goes. Masks everything, loads the pattern into every register,
// and stays.
.global client_wedge
client_wedge:
    msr daifset, #{ALL}
    mov x1, sp
    str x1, [x0]
    ldr x1, ={FPSR}
    msr fpsr, x1
    ldr x1, ={FPCR}
    msr fpcr, x1
    adrp x30, {PATTERN}
    add x30, x30, :lo12:{PATTERN}
    add x0, x30, #{PATTERN_V}
    vectors ldp
    ldp x0, x1, [x30, #{I0}]
    ldp x2, x3, [x30, #{I2}]
    ldp x4, x5, [x30, #{I4}]
    ldp x6, x7, [x30, #{I6}]
    ldp x8, x9, [x30, #{I8}]
    ldp x10, x11, [x30, #{I10}]
    ldp x12, x13, [x30, #{I12}]
    ldp x14, x15, [x30, #{I14}]
    ldp x16, x17, [x30, #{I16}]
    ldp x18, x19, [x30, #{X18}]
    ldp x20, x21, [x30, #{X20}]
    ldp x22, x23, [x30, #{X22}]
    ldp x24, x25, [x30, #{X24}]
    ldp x26, x27, [x30, #{X26}]
    ldp x28, x29, [x30, #{X28}]
    ldr x30, [x30, #{X30}]
.global client_wedge_loop
client_wedge_loop:
    b client_wedge_loop
.ltorg
