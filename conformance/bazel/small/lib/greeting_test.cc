#include "lib/greeting.h"

int main() { return Greeting("you") == "Hello, you" ? 0 : 1; }
