#include <iostream>

#include "lib/greeting.h"

int main() { std::cout << Greeting("world") << std::endl; }
