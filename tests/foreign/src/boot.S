// From QEMU's -kernel (PVH: 32-bit, paging off, EBX = hvm_start_info) and from a start-up IPI
// (16-bit) to cpu_entry in the higher half; the way into every trap; the page tables.

.set image_offset, 0xffffffff80000000   // virtual minus physical address of the image

.section .pvh_note, "a", @progbits
    .balign 4
    .long 4, 8, 18                      // XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_start - image_offset

.macro enter_long_mode                  // changes EAX, ECX, EDX
    movl $0x20, %eax                    // PAE
    movl %eax, %cr4
    movl $(page_root - image_offset), %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx              // EFER
    rdmsr
    orl $0x100, %eax                    // LME
    wrmsr
    movl $0x80010011, %eax              // PG, WP, ET, PE
    movl %eax, %cr0
    ljmpl $8, $(long_mode - image_offset)
.endm

.section .text.boot, "ax", @progbits
.code32
pvh_start:
    cli
    lgdtl gdt_pointer_of_page - image_offset
    enter_long_mode

.code16
ap_page:                                // copied to a page below 640 KiB
    cli
    movw %cs, %ax
    movw %ax, %ds
    lgdtl gdt_pointer_of_page - ap_page
    enter_long_mode
gdt_pointer_of_page:
    .short 23
    .long gdt - image_offset

.code64
long_mode:
    movabsq $cpu_entry, %rax
    jmpq *%rax

.global cpu_entry
.type cpu_entry, @function
cpu_entry:                              // the entry of every CPU: no frame lies above it
    .cfi_startproc
    .irp register, rip, rsp, rbp, rbx, r12, r13, r14, r15
    .cfi_undefined \register
    .endr
    lgdtq gdt_pointer_high(%rip)
    movl $16, %eax
    movl %eax, %ss
    movl $0x10000, %edi                 // in the order of arrival: the boot processor is CPU 0
    lock xaddl %edi, stacks_taken(%rip)
    movabsq $0xffffc90000010000, %rsp   // a stack ends where the next CPU's addresses begin
    addq %rdi, %rsp
    shrl $16, %edi
    movl %ebx, %esi
    xorl %ebp, %ebp
    call cpu_main
    .cfi_endproc
.size cpu_entry, . - cpu_entry

.balign 16
trap_stubs:                             // 16 bytes for each vector, up to that of the stop
    .set vector, 0
    .rept 33
    .balign 16
    .if !((0x60227d00 >> vector) & 1)   // those without an error code
    pushq $0
    .endif
    pushq $vector
    jmp trap_entry
    .set vector, vector + 1
    .endr

trap_entry:                             // pushes the first 21 words of X86Registers
    xchgq %rdi, (%rsp)
    .irp register, rsi, rdx, rcx, rax, r8, r9, r10, r11, rbx, rbp, r12, r13, r14, r15
    pushq %\register
    .endr
    cld
    movq %rsp, %rsi
    subq $8, %rsp
    call trap
    addq $8, %rsp
    .irp register, r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi
    popq %\register
    .endr
    addq $8, %rsp
    iretq

.section .data.boot, "aw", @progbits
stacks_taken:
    .long 0
gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdt_pointer_high:
    .short 23
    .quad gdt

// Four levels: entry 273 is a linear map of the first 4 GiB, 402 the stacks, 511 the image. The
// first entry maps memory one to one, until all CPUs run in the higher half.
.balign 4096
page_root:
    .quad memory_pdpt - image_offset + 3; .fill 272, 8, 0
    .quad memory_pdpt - image_offset + 3; .fill 128, 8, 0
    .quad stack_pdpt - image_offset + 3; .fill 108, 8, 0
    .quad image_pdpt - image_offset + 3
memory_pdpt:                            // pages of 1 GiB
    .quad 0x83, 0x40000083, 0x80000083, 0xc0000083; .fill 508, 8, 0
image_pdpt:
    .fill 510, 8, 0; .quad 0x83, 0
stack_pdpt:
    .quad stack_pd - image_offset + 3; .fill 511, 8, 0
stack_pd:
    .quad stack_pages - image_offset + 3; .fill 511, 8, 0
stack_pages:                            // of 16 pages for each CPU the upper 8, far apart
    .set page, 0
    .rept 64
    .if page & 8
    .quad 0x2000003 + ((page * 29) & 127) * 0x3000
    .else
    .quad 0
    .endif
    .set page, page + 1
    .endr
    .fill 448, 8, 0
