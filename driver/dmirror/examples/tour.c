/* A page goes to the device and comes back. An ordinary C program, which knows nothing of isomem:
 *
 *     cc driver/dmirror/examples/tour.c -o tour && isomem dmirror -- ./tour
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

/* What the device is told: pages of the program, a buffer for the answer; it answers how many pages, and how often it had to fault. */
struct command {
	uint64_t addr, ptr, npages, cpages, faults;
};
enum { READ, WRITE, TO_DEVICE, TO_SYSTEM, SNAPSHOT };

static const size_t page = 4096;

static struct command give(int device, int number, void *pages, size_t count, void *data)
{
	struct command command = { (uintptr_t)pages, (uintptr_t)data, count, 0, 0 };
	if (ioctl(device, _IOWR('H', number, struct command), &command) != 0) {
		perror("ioctl");
		exit(1);
	}
	return command;
}

int main(void)
{
	const size_t count = 4;
	int device = open("/dev/hmm_dmirror0", O_RDWR);
	if (device < 0) {
		perror("/dev/hmm_dmirror0 (run me with `isomem dmirror`)");
		return 1;
	}
	char *pages = mmap(NULL, count * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *data = calloc(count, page);
	unsigned char seen[4];
	for (size_t i = 0; i < count; i++)
		sprintf(pages + i * page, "page %zu, by the CPU", i);

	printf("sent %d pages\n", (int)give(device, TO_DEVICE, pages, count, data).cpages);
	give(device, SNAPSHOT, pages, count, seen);
	printf("on the device: %d of 4\n", (seen[0] == 0x22) + (seen[1] == 0x22) + (seen[2] == 0x22) + (seen[3] == 0x22));
	memset(data, 0, count * page);
	for (size_t i = 0; i < count; i++)
		sprintf(data + i * page, "page %zu, by the device", i);
	printf("faults of a device write: %d\n", (int)give(device, WRITE, pages, count, data).faults);

	/* The CPU touches it: it is back. */
	printf("%s\n", pages + 3 * page);
	give(device, SNAPSHOT, pages + 3 * page, 1, seen);
	printf("page 3 is %s\n", seen[0] == 0x02 ? "at home" : "elsewhere");
	return close(device);
}
