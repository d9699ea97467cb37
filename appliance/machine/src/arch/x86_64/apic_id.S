// The APIC ID of the running CPU into EDI, from the processor alone: the x2APIC ID where CPUID
// leaf 0bh is there and not empty (it is reserved, all zero, on processors that have higher
// leaves without it), else the eight bits of leaf 1. 64-bit code. Changes EAX, EBX, ECX, EDX,
// ESI.

.macro own_apic_id
    xor eax, eax
    cpuid
    mov esi, eax                            // highest basic leaf
    mov eax, 1
    cpuid
    shr ebx, 24
    mov edi, ebx                            // initial APIC ID, 8 bits
    cmp esi, 0x0b
    jb 99f
    mov eax, 0x0b
    xor ecx, ecx
    cpuid
    test bx, bx                             // logical processors at this level: none?
    jz 99f
    mov edi, edx                            // x2APIC ID
99:
.endm
