// From no paging to long mode, in 16 or 32-bit code: the page tables whose root is in EAX,
// EFER, and CR0 in one write. A far transfer to 64-bit code has to follow. Changes EAX, ECX,
// EDX.

.macro enable_long_mode
    mov cr3, eax
    mov ecx, 0xc0000080                     // EFER
    rdmsr
    or eax, {efer_set}
    wrmsr
    mov eax, cr0
    or eax, {cr0_set}
    and eax, {cr0_keep}
    mov cr0, eax
.endm
