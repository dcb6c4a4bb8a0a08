#include "textflag.h"

// Go's assembler has no names for the instructions of AMX. Their bytes stand beside what LLVM calls them, which the test of
// encodings compares.

// func product(config *[64]byte, d, a, b *byte, dStride, aStride, bStride int)
TEXT ·product(SB), NOSPLIT, $0-56
	MOVQ config+0(FP), AX
	MOVQ d+8(FP), DI
	MOVQ a+16(FP), SI
	MOVQ b+24(FP), DX
	MOVQ dStride+32(FP), R8
	MOVQ aStride+40(FP), R9
	MOVQ bStride+48(FP), R10
	LONG $0x4978e2c4; BYTE $0x00 // ldtilecfg (%rax)
	LONG $0x4b7ba2c4; BYTE $0x04; BYTE $0x07 // tileloadd (%rdi,%r8), %tmm0
	LONG $0x4b7ba2c4; BYTE $0x0c; BYTE $0x0e // tileloadd (%rsi,%r9), %tmm1
	LONG $0x4b7ba2c4; BYTE $0x14; BYTE $0x12 // tileloadd (%rdx,%r10), %tmm2
	LONG $0x5c6ae2c4; BYTE $0xc1 // tdpbf16ps %tmm2, %tmm1, %tmm0
	LONG $0x4b7aa2c4; BYTE $0x04; BYTE $0x07 // tilestored %tmm0, (%rdi,%r8)
	LONG $0x4978e2c4; BYTE $0xc0 // tilerelease
	RET

// Every form of an address, all tiles, and what product has no use for: see its test.
//
// func others(config *[64]byte, to, from *[8][1024]byte, kept *[64]byte)
TEXT ·others(SB), NOSPLIT, $0-32
	MOVQ config+0(FP), R11
	MOVQ to+8(FP), R13
	MOVQ from+16(FP), R12
	MOVQ kept+24(FP), CX
	MOVQ $64, R14
	MOVQ $32, R9
	LONG $0x4978c2c4; BYTE $0x03 // ldtilecfg (%r11)
	LONG $0x4b7b82c4; BYTE $0x04; BYTE $0x34 // tileloadd (%r12,%r14), %tmm0
	LONG $0x4b7982c4; LONG $0x0400348c; BYTE $0x00; BYTE $0x00 // tileloaddt1 1024(%r12,%r14), %tmm1
	LONG $0x4b7b82c4; LONG $0x08004c94; BYTE $0x00; BYTE $0x00 // tileloadd 2048(%r12,%r9,2), %tmm2
	LONG $0x4b7982c4; LONG $0x0c00349c; BYTE $0x00; BYTE $0x00 // tileloaddt1 3072(%r12,%r14), %tmm3
	LONG $0x4b7b82c4; LONG $0x100034a4; BYTE $0x00; BYTE $0x00 // tileloadd 4096(%r12,%r14), %tmm4
	LONG $0x4b7b82c4; LONG $0x140034ac; BYTE $0x00; BYTE $0x00 // tileloadd 5120(%r12,%r14), %tmm5
	LONG $0x4b7b82c4; LONG $0x180034b4; BYTE $0x00; BYTE $0x00 // tileloadd 6144(%r12,%r14), %tmm6
	LONG $0x4b7b82c4; LONG $0x1c0034bc; BYTE $0x00; BYTE $0x00 // tileloadd 7168(%r12,%r14), %tmm7
	LONG $0x4979e2c4; BYTE $0x01 // sttilecfg (%rcx)
	LONG $0x497be2c4; BYTE $0xe8 // tilezero %tmm5
	LEAQ 1088(R13), BX
	LONG $0x4b7a82c4; BYTE $0x7c; BYTE $0x35; BYTE $0x00 // tilestored %tmm7, (%r13,%r14)
	LONG $0x4b7aa2c4; BYTE $0x74; BYTE $0x33; BYTE $0xc0 // tilestored %tmm6, -64(%rbx,%r14)
	LONG $0x4b7a82c4; LONG $0x08004dac; BYTE $0x00; BYTE $0x00 // tilestored %tmm5, 2048(%r13,%r9,2)
	LONG $0x4b7a82c4; LONG $0x0c0035a4; BYTE $0x00; BYTE $0x00 // tilestored %tmm4, 3072(%r13,%r14)
	LONG $0x4b7a82c4; LONG $0x1000359c; BYTE $0x00; BYTE $0x00 // tilestored %tmm3, 4096(%r13,%r14)
	LONG $0x4b7a82c4; LONG $0x14003594; BYTE $0x00; BYTE $0x00 // tilestored %tmm2, 5120(%r13,%r14)
	LONG $0x4b7a82c4; LONG $0x1800358c; BYTE $0x00; BYTE $0x00 // tilestored %tmm1, 6144(%r13,%r14)
	LONG $0x5c42e2c4; BYTE $0xc4 // tdpbf16ps %tmm7, %tmm4, %tmm0
	LONG $0x4b7a82c4; LONG $0x1c003584; BYTE $0x00; BYTE $0x00 // tilestored %tmm0, 7168(%r13,%r14)
	LONG $0x4978e2c4; BYTE $0xc0 // tilerelease
	RET
