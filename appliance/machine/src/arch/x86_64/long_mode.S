// From no paging to long mode, in 16 or 32-bit code: the page tables whose root is in EAX,
// CR4, EFER, and CR0 in one write. A far transfer to 64-bit code has to follow. Machine checks
// and pages without execution are enabled where the processor has them: setting a bit that it
// does not know is a fault, and here a triple fault. CR4 is written whole, so that five-level
// paging that firmware left on is off. Changes EAX, EBX, ECX, EDX.

.macro enable_long_mode
    mov cr3, eax
    mov eax, 1
    cpuid
    and edx, 1 << 7                         // MCE
    shr edx, 1                              // is bit 6 of CR4
    or edx, {cr4_set}
    mov cr4, edx
    mov eax, 0x80000001
    cpuid
    and edx, 1 << 20                        // NX
    shr edx, 9                              // is bit 11 of EFER
    mov ebx, edx
    mov ecx, 0xc0000080                     // EFER
    rdmsr
    or eax, {efer_set}
    or eax, ebx
    wrmsr
    mov eax, cr0
    or eax, {cr0_set}
    and eax, {cr0_keep}
    mov cr0, eax
.endm
